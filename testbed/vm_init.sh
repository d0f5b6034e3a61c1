#!/bin/busybox sh
# The first process of the guest, see vm.py: mounts the file systems and starts the command.
set -eu
b=/bin/busybox
PATH=/bin
export PATH

$b mkdir -p /proc /new
$b mount -t proc proc /proc
while read -r module; do
    $b insmod "/modules/$module"
done </modules/order

nine() {
    $b mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"
}

nine root /new ro,cache=loose
$b mount -t proc proc /new/proc
$b mount -t sysfs sysfs /new/sys
$b mount -t devtmpfs devtmpfs /new/dev
$b mkdir -p /new/dev/pts /new/dev/shm
$b mount -t devpts devpts /new/dev/pts
$b mount -t tmpfs tmpfs /new/dev/shm
$b mount -t tmpfs tmpfs /new/run
$b mkdir -p /new/run/guest /new/run/tmp
nine share /new/run/guest rw,cache=none

$b umount /proc
exec $b switch_root -c /dev/console /new /bin/sh /run/guest/start
