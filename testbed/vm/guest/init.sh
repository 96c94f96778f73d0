#!/bin/sh
# Init of the guest: the mounts a system has, then the agent that runs the command, then power off.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777,size=75% tmp /tmp
mkdir -p /run/netns /run/lock /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
echo testbed >/proc/sys/kernel/hostname
ip link set lo up

read -r python </etc/testbed/python
"$python" -I -S /etc/testbed/agent.py >/dev/console 2>&1 </dev/null
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done # until the power is off: init may not end
