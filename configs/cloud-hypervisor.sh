#!/bin/sh
# cloud-hypervisor.sh SOCKET TAG KERNEL DISK: a guest with the virtio-fs device of a running rafsd.
# Inside: mount -t virtiofs -o ro TAG /mnt
set -eu
if [ $# -ne 4 ]; then
  sed -n '2,3s/^# //p' "$0" >&2
  exit 2
fi
exec cloud-hypervisor --cpus boot=2 --memory size=1G,shared=on \
  --fs "tag=$2,socket=$1,num_queues=1,queue_size=1024" \
  --kernel "$3" --disk "path=$4" --cmdline "console=hvc0 root=/dev/vda1 rw" \
  --console tty --serial off
