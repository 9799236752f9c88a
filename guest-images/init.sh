# SPDX-License-Identifier: Apache-2.0
# The user space of a test guest, started by init.c with the word behind vireo.do= on the kernel command
# line: how the guest is used.
#   shell    an interactive shell (the default)      tour    a short scripted look around, then power off
#   echo     answers each line until quit or reboot  cpus    prints what the machine has, then power off
#   wait     until the power button is pressed       deaf    the same, and ignores the button
#   panic    the kernel panics                       busy     waits without ever being idle
# A line that says rng is answered by echo with what the virtio random number generator gave.
# poweroff and reboot never come here.
# This shell finds busybox's programs in itself; only who types commands needs them in /bin as well.
word=${1:-shell}
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
load() { # LIST
  for module in $(cat "/modules/$(uname -r)/$1" 2>/dev/null); do
    insmod "/modules/$(uname -r)/$module"
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
[ "$word" = deaf ] || listen
read_rng() {
  load virtio
  echo "rng: $(cat /sys/class/misc/hw_random/rng_current)"
  dd if=/dev/hwrng of=/tmp/random bs=4096 count=64 2>/dev/null
  # Random bytes cannot be compressed.
  echo "rng: $(stat -c %s /tmp/random) bytes, $(gzip -c /tmp/random | wc -c) compressed"
}
case $word in
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
