#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Becomes a systemd of its own: process 1 of new pid, mount, network, IPC and UTS namespaces runs this
# (systemd_machine.py starts it). What systemd and the tests write goes to layers that end with it.
#
# usage: systemd_machine.sh CGROUP STAGE    CGROUP: to be its root; STAGE: a directory with etc, var and
#                                           usr, which are laid over those of the machine
set -eu
cgroup=$1 stage=$2
echo 0 >"$cgroup/cgroup.procs"
mount -t proc proc /proc
for directory in etc usr/local; do
  mkdir -p "$stage/work/$directory" "$stage/$directory"
  mount -t overlay -o "lowerdir=/$directory,upperdir=$stage/$directory,workdir=$stage/work/$directory" \
    overlay "/$directory"
done

# /dev/kvm as distributions have it: its group's.
kvm=$(stat -c '%Hr %Lr' /dev/kvm)
mkdir "$stage/dev"
mount -t tmpfs -o mode=755 tmpfs "$stage/dev"
mkdir "$stage/dev/pts" "$stage/dev/shm"
for node in null:3 zero:5 full:7 random:8 urandom:9; do
  mknod -m 666 "$stage/dev/${node%:*}" c 1 "${node#*:}"
done
mknod -m 666 "$stage/dev/tty" c 5 0
# shellcheck disable=SC2086 # two numbers
mknod -m 660 "$stage/dev/kvm" c $kvm
grep -q '^kvm:' /etc/group || echo 'kvm:x:64000:' >>/etc/group
chgrp kvm "$stage/dev/kvm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$stage/dev/pts"
ln -s pts/ptmx "$stage/dev/ptmx"
mount --move "$stage/dev" /dev

mount -t tmpfs -o mode=755 tmpfs /run
mount --move "$stage/var" /var
mkdir -p /run/units
for unit in basic sysinit sockets slices paths timers local-fs swap shutdown umount; do
  ln -s "/lib/systemd/system/$unit.target" /run/units/
done
for unit in machine.slice systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
  ln -s "/lib/systemd/system/$unit" /run/units/
done
printf '[Unit]\nRequires=basic.target systemd-journald.service\nAfter=basic.target\n' >/run/units/tests.target
mount -t tmpfs -o mode=1777 tmpfs /tmp

# Only what is listed above is ever started, so nothing of this machine is: no generator, no udev.
export container=vireo-tests SYSTEMD_GENERATOR_PATH=/run/none \
  SYSTEMD_UNIT_PATH=/run/systemd/system:/usr/local/lib/systemd/system:/run/units
exec unshare --cgroup sh -c 'mount -t sysfs sysfs /sys && mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
  exec /lib/systemd/systemd --system --unit=tests.target --log-target=journal --show-status=no'
