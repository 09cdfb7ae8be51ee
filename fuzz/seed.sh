#!/bin/sh
# Fills fuzz/corpus/TARGET with seeds made from the interop corpus. Run it from anywhere.
set -eu
cd "$(dirname "$0")"
interop=../guest-tests/corpus/interop
mkdir -p corpus/bootstrap_v5 corpus/bootstrap_v6

# v5: without the reserved part of the superblock (see fuzz_targets/bootstrap_v5.rs).
for file in "$interop"/v5-*/bootstrap "$interop"/v5-*/*-bootstrap "$interop"/v5-*/layers/*; do
    [ "$(wc -c < "$file")" -lt 300000 ] || continue
    name=$(echo "${file#"$interop"/}" | tr / _)
    { head -c 80 "$file"; tail -c +8193 "$file"; } > "corpus/bootstrap_v5/$name"
done

# v6: bootstraps, and blobs that have one inlined.
for file in "$interop"/v6-*/bootstrap "$interop"/v6-*/*-bootstrap "$interop"/v6-*/layers/* "$interop"/v6-*inline*/blobs/*; do
    [ "$(wc -c < "$file")" -lt 300000 ] || continue
    name=$(echo "${file#"$interop"/}" | tr / _)
    cp "$file" "corpus/bootstrap_v6/$name"
done
