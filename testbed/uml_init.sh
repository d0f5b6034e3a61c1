#!/bin/sh
# The first process of the guest, see uml.py: mounts the file systems and starts the command.
# The kernel's command line sets "share", a folder of the host, in the environment.
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

# Neither modprobe nor the kernel searches the folder with the modules of this kernel.
release=$(uname -r)
mount -t tmpfs tmpfs /lib/modules
ln -s "/usr/lib/uml/modules/$release" "/lib/modules/$release"

# A soft limit as large as on most systems
ulimit -n 65536
exec /bin/sh /run/guest/start
