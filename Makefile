# Everything a person or a CI machine runs. `make help` lists it.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CARGO ?= cargo
FUZZ_TARGETS := bootstrap_v5 bootstrap_v6 blob_meta fuse_request tar_archive tar_stream patterns stargz_toc compact_json attributes \
  api_request config_file
FUZZ_SECONDS ?= 30
DEMO_DIR ?=
PEER_DIR := target/peer
S3_DIR := target/s3
BOOT_DIR := target/boot
# What one build of the whole workspace leaves. Tests and the demo take the programs from there: cargo would build some
# dependencies again for fewer crates, with fewer features.
BIN_DIR = $(abspath $(or $(CARGO_TARGET_DIR),target))/debug

# Packages of Debian 12 and newer: a C compiler for zstd and libdeflate, QEMU for guests, the unpackers of kernel
# packages, servers that blobs come from, and a browser that looks at reports.
PACKAGES := gcc libc6-dev ca-certificates qemu-system-x86 kmod xz-utils zstd lz4 \
  docker-registry apache2-utils nginx-light openssl tinyproxy chromium-headless-shell

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: deps
deps: ## Install the Debian packages that building and testing need, if any is missing
	@missing=; for p in $(PACKAGES); do \
	  dpkg-query -W -f '$${db:Status-Abbrev}' $$p 2>/dev/null | grep -q '^ii' || missing="$$missing $$p"; \
	done; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  $$sudo apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qq -y --no-install-recommends install $$missing >/dev/null; \
	elif [ ! -s .guest/made-for ]; then \
	  $$sudo apt-get -qq update; \
	fi

.PHONY: build
build: ## Build rafsd and rafs-image for use: target/release
	$(CARGO) build --release -p rafsd -p rafs-builder

.PHONY: demo
demo: deps ## Pack a directory (DEMO_DIR=...), serve it, boot a Linux guest that reads it
	$(CARGO) build -q --workspace
	RAFSD_TEST_BIN_DIR=$(BIN_DIR) $(BIN_DIR)/demo $(DEMO_DIR)

.PHONY: lint
lint: ## Formatting and clippy, warnings are errors; the library without its daemon, too
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy -p rafsd --no-default-features -- -D warnings

.PHONY: unit
unit: deps ## All tests of the workspace, those with real guests included
	$(CARGO) build --workspace
	RAFSD_TEST_BIN_DIR=$(BIN_DIR) $(CARGO) test --workspace --no-fail-fast

.PHONY: fuzz
fuzz: deps ## Each fuzz target for FUZZ_SECONDS
	FUZZ_SECONDS=$(FUZZ_SECONDS) .ci/fuzz $(FUZZ_TARGETS)

.PHONY: test
test: deps ## All checks: lint, tests, a short run of each fuzz target
	@status=0; for step in lint unit fuzz; do \
	  echo "== $$step"; $(MAKE) --no-print-directory $$step || status=1; \
	done; exit $$status

.PHONY: bench
bench: deps bench-peer ## Cost of a request, rafsd beside virtiofsd end to end, and how create uses two cores
	$(CARGO) bench -q -p rafsd --bench server
	$(CARGO) build --release -q -p rafsd -p rafs-builder -p guest-tests
	target/release/bench-virtio
	target/release/bench-create
	target/release/bench-guests
	target/release/bench-fuse
	target/release/bench-cold
	[ ! -s $(BOOT_DIR)/opens ] || target/release/bench-store --root $(BOOT_DIR)/root --opens $(BOOT_DIR)/opens

.PHONY: bench-boot
bench-boot: deps ## Blobs 20 ms and 100 Mbit/s away: first boot, boot with a trace, image order (root, debootstrap, strace)
	[ -s $(BOOT_DIR)/opens ] || { mkdir -p $(BOOT_DIR) && guest-tests/guest/boot-files.sh $(BOOT_DIR)/root $(BOOT_DIR)/opens; }
	$(CARGO) build --release -q -p rafsd -p rafs-builder -p guest-tests
	target/release/bench-store --root $(BOOT_DIR)/root --opens $(BOOT_DIR)/opens

.PHONY: bench-peer
bench-peer: ## Build virtiofsd, the benchmark's peer, into target/peer
	@missing=; for p in fio libcap-ng-dev libseccomp-dev; do \
	  dpkg-query -W -f '$${db:Status-Abbrev}' $$p 2>/dev/null | grep -q '^ii' || missing="$$missing $$p"; \
	done; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	if [ -n "$$missing" ]; then \
	  $$sudo apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qq -y --no-install-recommends install $$missing >/dev/null; \
	fi
	[ -x $(PEER_DIR)/bin/virtiofsd ] || CARGO_TARGET_DIR=$(PEER_DIR)/build \
	  $(CARGO) install virtiofsd --version 1.14.0 --locked --root $(PEER_DIR)

.PHONY: test-peer
test-peer: deps bench-peer ## The test tools themselves against virtiofsd
	$(CARGO) test -p guest-tests --test frontend_peer --test guest_peer -- --ignored

.PHONY: s3-server
s3-server: ## Build s3s-fs, an S3 server that checks signatures, into target/s3 (minutes)
	[ -x $(S3_DIR)/bin/s3s-fs ] || CARGO_TARGET_DIR=$(S3_DIR)/build \
	  $(CARGO) install s3s-fs --version 0.14.1 --features binary --locked --debug --root $(S3_DIR)

.PHONY: test-s3
test-s3: s3-server ## Images from s3s-fs: both styles of addresses, odd names, what is refused, a clock that is wrong
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	if ! dpkg-query -W -f '$${db:Status-Abbrev}' libfaketime 2>/dev/null | grep -q '^ii'; then \
	  $$sudo apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qq -y --no-install-recommends install libfaketime >/dev/null; \
	fi
	$(CARGO) build --workspace
	RAFSD_TEST_BIN_DIR=$(BIN_DIR) S3S_FS=$(abspath $(S3_DIR)/bin/s3s-fs) $(CARGO) test -p guest-tests --test s3 -- --ignored

.PHONY: clean
clean: ## Remove all build output and the cached guest
	$(CARGO) clean
	rm -rf .guest fuzz/target
