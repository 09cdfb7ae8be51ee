#!/bin/sh
# boot-files.sh ROOT LIST: makes a Debian root file system in ROOT (unless it is there) and writes to LIST the files that
# importing a large Python package opens in it, in order. Needs root, debootstrap and strace.
set -eu
root=$1 list=$2
if [ ! -x "$root/usr/bin/python3" ]; then
  debootstrap --variant=minbase --include=python3-pandas,python3-scipy bookworm "$root"
  rm -rf "$root"/var/cache/apt/archives/* "$root"/var/lib/apt/lists/*
fi
trace=$(mktemp)
trap 'rm -f "$trace"' EXIT
strace -f -e trace=open,openat -o "$trace" chroot "$root" /usr/bin/python3 -c 'import pandas, scipy.sparse'
# Symbolic links are followed inside the root; each file counts once; empty ones do not.
grep -v ENOENT "$trace" | grep -oE '"/[^"]+"' | tr -d '"' | while read -r path; do
  real=$(chroot "$root" /usr/bin/readlink -f "$path" || true)
  if [ -n "$real" ] && [ -f "$root$real" ] && [ -s "$root$real" ]; then echo "$real"; fi
done | awk '!seen[$0]++' > "$list"
