#!/bin/sh
# qemu.sh SOCKET TAG KERNEL INITRD: a guest with the virtio-fs device of a running rafsd.
# Inside: mount -t virtiofs -o ro TAG /mnt
set -eu
if [ $# -ne 4 ]; then
  sed -n '2,3s/^# //p' "$0" >&2
  exit 2
fi
# Guest memory is shared with the daemon, hence memfd with share=on. 1024 entries a queue allow 1 MiB reads.
exec qemu-system-x86_64 -m 1G \
  -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \
  -chardev "socket,id=fs,path=$1" \
  -device "vhost-user-fs-pci,chardev=fs,tag=$2,queue-size=1024" \
  -kernel "$3" -initrd "$4" -append "console=ttyS0" -nographic
