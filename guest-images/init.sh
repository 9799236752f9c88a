# SPDX-License-Identifier: Apache-2.0
# The user space of a test guest, started by init.c with the word behind vireo.do= on the kernel command
# line: how the guest is used.
#   shell    an interactive shell (the default)      tour    a short scripted look around, then power off
#   echo     answers each line until quit or reboot  cpus    prints what the machine has, then power off
#   wait     until the power button is pressed       deaf    the same, and ignores the button
#   panic    the kernel panics                       busy     waits without ever being idle
#   script   does each line as a shell's, with disks ready to be mounted, until quit
#   added    does what /added.sh says, of an archive behind this one, with disks ready to be mounted
# Without a word, a command line with root= is that of a system of its own: its init takes over.
# A line that says rng is answered by echo with what the virtio random number generator gave.
# poweroff and reboot never come here.
# This shell finds busybox's programs in itself; only who types commands needs them in /bin as well.
word=$1
read -r line </proc/cmdline
for option in $line; do
  case $option in
    root=*) root=${option#root=} ;;
    ro | rw) root_mode=$option ;;
    init=*) init=${option#init=} ;;
  esac
done
[ -n "$word" ] || word=${root:+root}
word=${word:-shell}
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
load() { # LIST
  for module in $(cat "/modules/$(uname -r)/$1" 2>/dev/null); do
    file=/modules/$(uname -r)/$module
    case $module in *.xz) xzcat "$file" >/tmp/module.ko && file=/tmp/module.ko ;; esac
    insmod "$file"
  done
}
load order
# What listens for the power button: busybox has no acpid here, so the input device is read. It is open
# before the guest says that it is ready.
listen() {
  for event in /dev/input/event*; do
    [ -e "$event" ] || continue
    exec 3<"$event"
    { head -c 1 <&3 >/dev/null && poweroff -f; } &
  done
}
case $word in deaf | root | added) ;; *) listen ;; esac
read_rng() {
  load virtio
  echo "rng: $(cat /sys/class/misc/hw_random/rng_current)"
  dd if=/dev/hwrng of=/tmp/random bs=4096 count=64 2>/dev/null
  # Random bytes cannot be compressed.
  echo "rng: $(stat -c %s /tmp/random) bytes, $(gzip -c /tmp/random | wc -c) compressed"
}
# The PARTUUID of partition $2 of the disk $1: the one that the GPT has, or the disk's signature and the
# number.
partuuid() {
  if [ "$(dd if="$1" bs=8 skip=64 count=1 2>/dev/null)" = "EFI PART" ]; then
    set -- $(od -An -v -tx1 -j $((1024 + 128 * ($2 - 1) + 16)) -N 16 "$1")
    echo "$4$3$2$1-$6$5-$8$7-$9${10}-${11}${12}${13}${14}${15}${16}"
  else
    set -- $(od -An -v -tx1 -j 440 -N 4 "$1") "$2"
    printf '%s-%02x\n' "$4$3$2$1" "$5"
  fi
}
# The device that root= means, once it is there.
find_root() {
  case $root in
    PARTUUID=*)
      wanted=$(echo "${root#*=}" | tr A-F a-f)
      for partition in /sys/block/*/*/partition; do
        [ -e "$partition" ] || continue
        part=${partition%/partition}
        disk=${part%/*}
        [ "$(partuuid "/dev/${disk##*/}" "$(cat "$partition")")" = "$wanted" ] && echo "/dev/${part##*/}"
      done ;;
    *=*) findfs "$root" 2>/dev/null ;;
    *) [ -b "$root" ] && echo "$root" ;;
  esac
}
enter_root() {
  load virtio
  load ext4
  for tenth in $(seq 100); do
    device=$(find_root)
    [ -n "$device" ] && break
    sleep 0.1
  done
  # For cloud-init, which has no modules of its own on that disk.
  grep -qs cidata /sys/block/*/serial && load isofs
  mount -o "${root_mode:-ro}" "${device:-$root}" /root || return
  umount /tmp
  # This shell finds its programs by /proc.
  for place in dev sys proc; do
    /bin/busybox mount --move /$place /root/$place
  done
  exec /bin/busybox switch_root /root "${init:-/sbin/init}"
}
case $word in
  root)
    enter_root
    echo "init: $root cannot be entered; its disks: $(ls /sys/block)"
    poweroff -f ;;
  script)
    load virtio
    load ext4
    stty -echo
    echo "script: ready"
    while read -r line; do
      [ "$line" = quit ] && break
      eval "$line"
      echo "script: $?"
    done
    poweroff -f ;;
  added)
    load virtio
    load ext4
    . /added.sh ;;
  echo)
    echo "echo: ready"
    while read -r line; do
      [ "$line" = quit ] && break
      [ "$line" = reboot ] && reboot -f
      [ "$line" = rng ] && read_rng
      echo "echo: $line"
    done
    poweroff -f ;;
  cpus)
    echo "cpus: $(grep -c ^processor /proc/cpuinfo)"
    echo "memory: $(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
    echo "clocksource: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    echo "uuid: $(cat /sys/class/dmi/id/product_uuid 2>/dev/null)"
    poweroff -f ;;
  panic)
    echo c >/proc/sysrq-trigger ;;
  wait | deaf)
    echo "$word: ready"
    sleep 1000 ;;
  busy)
    echo "busy: ready"
    while :; do :; done ;;
  tour)
    echo; echo "== a Linux guest under vireo =="
    uname -srm
    grep -m1 'model name' /proc/cpuinfo
    free -m | head -n 2
    echo "clock: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    echo "up for $(cut -d' ' -f1 /proc/uptime) s; processes: $(ls -d /proc/[0-9]* | wc -l)"
    poweroff -f ;;
esac
busybox --install -s /bin
export PATH=/bin HOME=/ TERM=${TERM:-linux} PS1='guest# '
echo "A shell in the guest; poweroff -f ends it."
exec setsid cttyhack sh 2>/dev/null || exec sh
