#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Linux guests that are saved and go on in other processes, with their disks, under load.

Needs a KVM that runs kernel code: the test host has one.
"""
import os
import pathlib
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import vsnap_damage  # noqa: E402
from linux_guest import Guest, InDirectory  # noqa: E402
from vireo_process import ARTIFACTS, TIMEOUT, run  # noqa: E402

MIB = 1 << 20
LONG = bool(os.environ.get("VIREO_LONG"))
CYCLES = int(os.environ.get("VIREO_SNAPSHOT_CYCLES", "20" if LONG else "3"))
DEBIAN = f"{ARTIFACTS}/rootfs.ext4"
# Two jobs, each in half of the disk, without an end.
FIO = """--filename=/dev/vdb --size=8M --verify=crc32c --verify_fatal=1 --verify_backlog=128 --eta=never
    --time_based --runtime=1000000 --bsrange=4k-32k
    --name=direct --rw=randwrite --direct=1 --ioengine=libaio --iodepth=16
    --name=cached --rw=randwrite --offset=8M --ioengine=psync --fsync=32
    """.replace("\n", " ")
CLOCK_ERROR = 0.1
# Where a section has the time at which a clock was read.
TAKEN_AT = {b"x86-machine": 3 * 520 + 8, b"x86-vcpu": 320 + 144 + 392 + 128 + 1024 + 64 + 4 + 8}
HOUR_NS = 3600 * 10 ** 9
# What a kernel says of time or of devices that it does not understand.
COMPLAINTS = r"WARNING|BUG:|lockup|stall|hung|unstable|I/O error|reset|Call Trace|timed out"
# Each turn writes a block, makes it durable and reads it back; a number in a file tells how many there were.
WRITER = """(i=0; while :; do i=$((i+1)); yes $i | head -c 4096 >/tmp/block
    dd if=/tmp/block of=/dev/vda bs=4096 seek=$((i % 1000)) conv=fsync 2>/dev/null || echo failed >/tmp/failed
    dd if=/dev/vda bs=4096 skip=$((i % 1000)) count=1 iflag=direct 2>/dev/null | cmp -s - /tmp/block || echo wrong >>/tmp/failed
    echo $i >/tmp/turns.new; mv /tmp/turns.new /tmp/turns; done) & """.replace("\n", "; ")
# A sleep never ends early, by a clock in hundredths of a second.
SLEEPER = ("(while :; do read -r a x </proc/uptime; sleep 0.05; read -r b x </proc/uptime; "
           "[ $((${b%.*}${b#*.} - ${a%.*}${a#*.})) -ge 4 ] || echo early >>/tmp/failed; done) & ")
# The wall clock in ns: this monotonic clock, and what is added to it.
CLOCK = "awk '/^now at/ {now = $3} /^ clock 1:/ {wall = 1} wall && /offset/ {printf \"%.0f\\n\", now + $2; exit}' /proc/timer_list"


# Each process has the guest of the one before in another of these.
WAYS = (("--memory", "map"), ("--memory", "copy"), ("--standby",))


class Cycles(InDirectory):
    def setUp(self):
        super().setUp()
        self.socket = self.directory / "vm.sock"
        self.file = self.directory / "vm.vsnap"

    def control(self, *words):
        done = run("ctl", self.socket, *words)
        self.assertEqual(done.status, 0, done)
        return done

    def clock_offset(self):
        """By how much the guest's clock is ahead, in seconds, and how far that may be wrong."""
        best = (0, 1e9)
        for _ in range(5):
            before = time.time()
            guest = int(self.guest.do(CLOCK)) / 1e9
            after = time.time()
            best = min(best, (guest - (before + after) / 2, (after - before) / 2), key=lambda found: found[1])
        return best

    def move(self, *options):
        self.control("snapshot", self.file, "--then", "stop")
        self.guest.end()
        self.guest.begin("restore", self.file, "--control", self.socket, *options)
        if "--standby" in options:
            while run("ctl", self.socket, "status").status != 0:
                self.assertIsNone(self.guest.process.poll())
            self.control("load")

    def cycles(self, cpus):
        """Of the guest, which is under load, with sleepers beside it; look() says whether the load goes on."""
        self.guest.do("rm -f /tmp/failed; " + SLEEPER * cpus + "true")
        self.guest.do("dmesg -c >/dev/null")
        offset, error = self.clock_offset()
        for cycle in range(CYCLES):
            self.move(*WAYS[cycle % len(WAYS)])
            now, now_error = self.clock_offset()
            self.assertAlmostEqual(now, offset, delta=CLOCK_ERROR + error + now_error)
            self.look()
            self.guest.do("[ ! -e /tmp/failed ] || { cat /tmp/failed; false; }")
            self.guest.do("head -c 64 /dev/hwrng >/dev/null")
        self.guest.do(f"if dmesg | grep -E '{COMPLAINTS}'; then false; fi")
        self.assertEqual(self.guest.do("grep -c ^processor /proc/cpuinfo"), str(cpus))


class UnderFio(Cycles):
    """Debian, whose fio writes to a disk and reads all of it again and compares. VIREO_SNAPSHOT_CYCLES=100
    for the long way."""

    def look(self):
        """Requests still end, and fio has found nothing wrong."""
        ended = "$(awk '{print $1 + $5}' /sys/block/vdb/stat)"
        before = int(self.guest.do(f"echo {ended}"))
        self.guest.do(f"while [ {ended} -lt {before + 100} ] && kill -0 $fio; do sleep 0.05; done; kill -0 $fio")

    def verified(self, cpus, transport):
        self.guest = Guest(self, self.directory, f"""
            [machine]
            cpus = {cpus}
            memory = "256M"
            transport = "{transport}"
            [rng]
            [[disk]]
            id = "root"
            path = "{DEBIAN}"
            overlay = "{self.directory / 'root.overlay'}"
            root = true
            [[disk]]
            id = "data"
            path = "{self.image('data.img', 16 * MIB)}"
            """, "--control", self.socket, debian=True)
        self.guest.do(f"fio {FIO} >/tmp/fio 2>&1 & fio=$!")
        self.cycles(cpus)
        said = self.guest.do("kill -INT $fio; wait $fio; cat /tmp/fio")
        self.assertEqual((said.count("err= 0:"), said.count("verify:")), (2, 0), said)
        self.guest.quit()

    # Minutes for each, on an emulated machine.
    if LONG:
        def test_four_vcpus_over_pci(self):
            self.verified(4, "pci")

        def test_one_vcpu_over_mmio(self):
            self.verified(1, "mmio")

        def test_one_vcpu_over_pci(self):
            self.verified(1, "pci")

        def test_four_vcpus_over_mmio(self):
            self.verified(4, "mmio")


class Snapshots(Cycles):
    def start(self, cpus, transport, *options, **settings):
        disk = self.image("disk.img", 16 * MIB)
        config = f"""
            [machine]
            cpus = {cpus}
            memory = "160M"
            transport = "{transport}"
            {settings.pop("machine", "")}
            [rng]
            [[disk]]
            id = "data"
            path = "{disk}"
            {settings.pop("more", "")}
            """
        self.guest = Guest(self, self.directory, config, "--control", self.socket, *options, **settings)

    def look(self):
        last = self.turns
        self.turns = int(self.guest.do(f"until [ $(cat /tmp/turns) -gt {last} ]; do sleep 0.05; done; cat /tmp/turns"))
        self.assertGreater(self.turns, last)

    def written(self, cpus, transport):
        self.start(cpus, transport)
        self.turns = 0
        self.guest.do(WRITER + "true")
        self.cycles(cpus)
        self.guest.quit()

    def test_one_vcpu_over_mmio(self):
        self.written(1, "mmio")

    def test_four_vcpus_over_pci(self):
        self.written(4, "pci")

    def test_reserved_huge_pages(self):
        """Small pages are what a log of changes tells, whatever memory is made of."""
        reserved = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
        self.addCleanup(reserved.write_text, reserved.read_text(encoding="ascii"), encoding="ascii")
        reserved.write_text("80", encoding="ascii")
        self.start(1, "mmio", machine='hugepages = "2M"\ntrack_dirty = true')
        self.turns = 0
        self.guest.do(WRITER + "true")
        full, diff = self.directory / "full.vsnap", self.directory / "diff.vsnap"
        self.control("snapshot", full, "--disks", "none")
        self.look()
        self.control("snapshot", diff, "--diff", "--then", "stop")
        self.guest.end()
        self.assertLess(diff.stat().st_blocks, full.stat().st_blocks // 2)
        self.assertEqual(run("snapshot", "merge", full, diff, "--output", self.file).status, 0)
        self.guest.begin("restore", self.file, "--control", self.socket)
        self.look()
        self.move("--standby")
        self.look()
        self.guest.do("[ ! -e /tmp/failed ] || { cat /tmp/failed; false; }")
        self.guest.quit()

    def test_an_hour_in_between(self):
        """The guest's clocks have gone on, and its watchdogs do not take that for a lockup."""
        self.start(2, "mmio")
        self.guest.do(WRITER + SLEEPER * 2 + "dmesg -c >/dev/null")
        before = float(self.guest.do("cut -d ' ' -f 1 /proc/uptime"))
        self.control("snapshot", self.file, "--then", "stop")
        self.guest.end()
        file = vsnap_damage.File(self.file)
        for tag, _, _, content in file.sections:
            if at := TAKEN_AT.get(tag):
                taken = int.from_bytes(content[at:at + 8], "little") - HOUR_NS
                content[at:at + 8] = taken.to_bytes(8, "little")
        self.file.write_bytes(file.bytes())
        self.guest.begin("restore", self.file, "--control", self.socket)
        after = float(self.guest.do("cut -d ' ' -f 1 /proc/uptime"))
        self.assertGreater(after - before, HOUR_NS / 1e9)
        # Watchdogs look each 4 s.
        self.guest.do("sleep 10; [ ! -e /tmp/failed ] || { cat /tmp/failed; false; }")
        self.guest.do(f"if dmesg | grep -E '{COMPLAINTS}'; then false; fi")
        self.guest.quit()

    def test_a_clone_is_told_so(self):
        self.start(1, "mmio", kernel="generic")
        told = "dmesg | grep -c 'crng reseeded due to virtual machine fork'"
        self.assertEqual(self.guest.do(told, status=1), "0")
        for number in range(2):
            self.move()
            self.guest.do(f"until [ $({told}) = {number + 1} ]; do sleep 0.1; done")
        self.guest.quit()

    def test_clones_of_one_snapshot(self):
        """Three at a time, each with a disk of its own."""
        self.start(2, "mmio")
        self.guest.do("echo before >/tmp/word; dd if=/tmp/word of=/dev/vda conv=fsync 2>/dev/null")
        self.control("snapshot", self.file, "--then", "stop")
        self.guest.end()
        clones = []
        for number in range(3):
            disk = self.directory / f"clone-{number}.img"
            subprocess.run(["cp", self.directory / "disk.img", disk], check=True)
            clone = Guest.__new__(Guest)
            clone.test = self
            clone.begin("restore", self.file, "--disk", f"id=data,path={disk}", "--name", f"clone-{number}")
            clones.append((clone, disk))
        for number, (clone, _) in enumerate(clones):
            self.assertEqual(clone.do("cat /tmp/word"), "before")
            clone.do(f"echo clone-{number} >/tmp/word; dd if=/tmp/word of=/dev/vda conv=fsync 2>/dev/null")
        for number, (clone, disk) in enumerate(clones):
            self.assertEqual(clone.do("dd if=/dev/vda iflag=direct bs=512 count=1 2>/dev/null | head -n 1"), f"clone-{number}")
            clone.quit()
            self.assertTrue(disk.read_bytes().startswith(f"clone-{number}\n".encode()))
        self.assertTrue((self.directory / "disk.img").read_bytes().startswith(b"before\n"))


if __name__ == "__main__":
    unittest.main()
