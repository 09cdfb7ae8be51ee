#!/bin/bash
# Fetches what a test guest is made of into a cache directory:
#
#   prepare.sh OUT [KERNEL-PACKAGE]
#
#   OUT/vmlinux   Debian's cloud kernel as an ELF file, which QEMU starts without a boot loader
#   OUT/busybox   a static busybox
#   OUT/modules/  the modules that are needed, numbered in loading order
#   OUT/release   the kernel's release
#   OUT/made-for  which modules were wanted; written last, so a half-made or older cache is made again
#
# Both packages are downloaded and unpacked, never installed. Nothing happens when OUT is complete.
set -euo pipefail

fail() { echo "prepare.sh: $*" >&2; exit 1; }

[ $# -ge 1 ] || fail "usage: prepare.sh OUT [KERNEL-PACKAGE]"
package=${2:-linux-image-cloud-$(dpkg --print-architecture)}
modules='virtio_pci virtio_console virtiofs overlay'
[ "$(cat "$1/made-for" 2> /dev/null)" != "$modules" ] || exit 0
for tool in dpkg-deb modprobe depmod xz zstd lz4; do
  command -v "$tool" > /dev/null || fail "$tool is missing: run 'make deps'"
done
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Downloads one package and unpacks it below $work/root; prints the packages it depends on.
fetch() {
  rm -rf "$work/deb" && mkdir "$work/deb"
  (cd "$work/deb" && apt-get -qq -o APT::Sandbox::User= download "$1" >&2) ||
    fail "cannot download $1: has 'apt-get update' been run?"
  dpkg-deb -x "$work"/deb/*.deb "$work/root"
  dpkg-deb -f "$work"/deb/*.deb Depends | tr ',' '\n' | sed 's/^ *//; s/[ (].*//'
}

# The package of that name only points to the one of the current release, which newer Debians cut into parts.
queue=$package
while [ -n "$queue" ]; do
  more=''
  for name in $queue; do
    more+=" $(fetch "$name" | grep -E '^linux-(image|binary|modules)-[0-9]' || true)"
  done
  queue=$(echo $more)
done
fetch busybox-static > /dev/null
install -m 755 "$(find "$work/root" -type f -path '*bin/busybox' -print -quit)" "$out/busybox"

image=$(find "$work/root" -type f -name 'vmlinuz*' -print -quit)
[ -n "$image" ] || fail "$package holds no kernel"
library=$(dirname "$(find "$work/root" -type d -path '*lib/modules' -print -quit)")
release=$(ls "$library/modules")
base=$(dirname "$library")
# modprobe looks below lib/modules, packages of a merged /usr have usr/lib/modules
[ -d "$base/lib/modules" ] || fail "no lib/modules in $package"

# The image is a small loader with the real kernel packed inside it: try each place where an archive may begin.
unpacked() {
  local pattern=$1 at
  shift
  for at in $(LC_ALL=C grep --text --byte-offset --only-matching --perl-regexp "$pattern" "$image" | cut -d: -f1 | head -n 8); do
    tail -c "+$((at + 1))" "$image" | "$@" > "$out/vmlinux" 2> /dev/null || true
    if [ "$(head -c 4 "$out/vmlinux" | tail -c 3)" = ELF ]; then return 0; fi
  done
  return 1
}
unpacked '\xfd7zXZ\x00' xz -dc || unpacked '\x28\xb5\x2f\xfd' zstd -dcq || unpacked '\x02!L\x18' lz4 -dc ||
  unpacked '\x1f\x8b\x08' gzip -dc || fail "cannot unpack the kernel of $package"

depmod -b "$base" "$release"
rm -rf "$out/modules" && mkdir "$out/modules"
number=100
for module in $modules; do
  plan=$(modprobe -d "$base" -S "$release" --show-depends "$module") || fail "kernel $release has no $module"
  while read -r action file _; do
    [ "$action" = insmod ] || continue # what is built in needs no loading
    name=$(basename "$file" | sed 's/\.ko.*//')
    [ -z "$(find "$out/modules" -name "*-$name.ko" -print -quit)" ] || continue
    case $file in
      *.xz) xz -dc "$file" ;;
      *.zst) zstd -dcq "$file" ;;
      *.gz) gzip -dc "$file" ;;
      *) cat "$file" ;;
    esac > "$out/modules/$number-$name.ko"
    number=$((number + 1))
  done <<< "$plan"
done
echo "$release" > "$out/release"
echo "$modules" > "$out/made-for"
echo "prepare.sh: kernel $release, $(ls "$out/modules" | wc -l) modules in $out" >&2
