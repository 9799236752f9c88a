# SPDX-License-Identifier: Apache-2.0
# The user space of a test guest, started by init.c with the word behind vireo.do= on the kernel command
# line: how the guest is used.
#   shell    an interactive shell (the default)      tour    a short scripted look around, then power off
#   echo     answers each line of input until `quit` cpus    prints what the machine has, then power off
#   wait     says that it is there and then nothing  panic   the kernel panics
# (poweroff and reboot never come here.)
b=/bin/busybox
word=${1:-shell}
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs tmpfs /tmp
$b --install -s /bin
export PATH=/bin HOME=/ TERM=${TERM:-linux} PS1='guest# '
# What listens for the power button: busybox has no acpid here, so the input device is read.
(
  for event in /dev/input/event*; do
    [ -e "$event" ] && { head -c 1 "$event" >/dev/null && poweroff -f; } &
  done
) 2>/dev/null
case $word in
  echo)
    echo "echo: ready"
    while read -r line; do
      [ "$line" = quit ] && break
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
  wait)
    echo "wait: ready"
    sleep 1000 ;;
  tour)
    echo; echo "== a Linux guest under vireo =="
    uname -srm
    grep -m1 'model name' /proc/cpuinfo
    free -m | head -n 2
    echo "clock: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    echo "up for $(cut -d' ' -f1 /proc/uptime) s; processes: $(ls -d /proc/[0-9]* | wc -l)"
    poweroff -f ;;
esac
echo "A shell in the guest; poweroff -f ends it."
exec setsid cttyhack sh 2>/dev/null || exec sh
