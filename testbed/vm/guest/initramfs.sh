#!/bin/busybox sh
# First process of the guest: loads what the root file system needs, lays the project over it, and
# hands over. In a trial boot it only says that it lives.

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
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /usr/sbin/testbed-init
