#!/bin/sh
# The first process of the guest, see uml.py: puts the file systems together and starts the command.
# "share", a folder of the host, comes in the environment, from the kernel's command line.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
mount -t tmpfs tmpfs /run
mkdir /run/tmp /run/guest
mount -t hostfs -o "$share" none /run/guest

# The modules of this kernel are where neither modprobe nor the kernel looks for them.
release=$(uname -r)
mount -t tmpfs tmpfs /lib/modules
ln -s "/usr/lib/uml/modules/$release" "/lib/modules/$release"

# As generous as the systems that programs are used to.
ulimit -n 65536
exec /bin/sh /run/guest/start
