#!/bin/busybox sh
# First process of the guest: loads what the root file system needs, lays the project over it,
# mounts what a system has, and hands over. In a trial boot it only says that it lives.

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

if grep -q testbed.trial /proc/cmdline; then
    echo TESTBED-GUEST-ALIVE >/dev/console
    poweroff -f
fi

while read -r module; do
    insmod "/modules/$module" || echo "testbed: cannot load $module" >/dev/console
done </modules/order

# The disks' nodes follow their driver: looking is all there is, and it is bounded.
looks=0
while [ ! -b /dev/vdb ] && [ $looks -lt 500 ]; do
    usleep 20000
    looks=$((looks + 1))
done

mkdir -p /image /layer /root
mount -t ext4 -o ro /dev/vda /image &&
    mount -t tmpfs -o size=75% layer /layer &&
    mkdir /layer/upper /layer/work &&
    mount -t overlay -o lowerdir=/image,upperdir=/layer/upper,workdir=/layer/work overlay /root &&
    tar -xf /dev/vdb -C /root || {
    echo "testbed: the guest's root file system cannot be mounted" >/dev/console
    poweroff -f
}

# Busybox does here in half the time what the system's own tools would do later.
mkdir /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
mount -t tmpfs -o mode=755 run /root/run
mkdir /root/run/netns /root/run/lock
# No file system of its own for /tmp: the layer is memory already, and the project may lie there.
chmod 1777 /root/tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
echo testbed >/proc/sys/kernel/hostname
ip link set lo up
while read -r tag path; do
    mkdir -p "/root$path"
    # Every write goes to the host at once: whatever ends the guest, finished results are there.
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none "$tag" "/root$path" || {
        echo "testbed: cannot mount $path" >/dev/console
        poweroff -f
    }
done </root/etc/testbed/shares

mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /usr/sbin/testbed-init
