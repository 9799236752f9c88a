#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The probe and the bare floor: on this machine's KVM where there is one, and on QEMU's emulator.

usage: probe_test.py PROBE FLOOR [unittest arguments]    exit 77: neither KVM nor QEMU
"""
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_disk import job_values, pattern  # noqa: E402

PROBE = ""
FLOOR = ""
QEMU = shutil.which("qemu-system-x86_64")
TIMEOUT = 60  # seconds; a run takes one or two


def kvm_usable():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        return True
    except OSError:
        return False


def values(output):
    """{name: [text, ...]} of the lines "probe: name=text"."""
    found = {}
    for line in output.splitlines():
        name, equals, text = line.removeprefix("probe: ").partition("=")
        if line.startswith("probe: ") and equals:
            found.setdefault(name, []).append(text)
    return found


class Image(unittest.TestCase):
    """What loaders see of the file."""

    def setUp(self):
        with open(PROBE, "rb") as file:
            self.bytes = file.read()
        offset, = struct.unpack_from("<Q", self.bytes, 0x20)
        count, = struct.unpack_from("<H", self.bytes, 0x38)
        self.segments = [struct.unpack_from("<IIQQQQQQ", self.bytes, offset + 56 * i)
                         for i in range(count)]

    def test_lies_at_1_mib_and_nothing_is_writable_and_executable(self):
        loads = [segment for segment in self.segments if segment[0] == 1]
        self.assertEqual(min(segment[4] for segment in loads), 0x100000)
        for segment in loads:
            self.assertNotEqual(segment[1] & 3, 3)
            self.assertLess(segment[4] + segment[6], 0x200000)

    def test_has_the_pvh_note_and_no_other(self):
        notes = [segment for segment in self.segments if segment[0] == 4]
        self.assertEqual(len(notes), 1)
        offset, size = notes[0][2], notes[0][5]
        self.assertEqual(struct.unpack_from("<III4sQ", self.bytes, offset),
                         (4, 8, 18, b"Xen\0", 0x100000))
        self.assertEqual(size, 24)


@unittest.skipUnless(kvm_usable(), "no usable /dev/kvm")
class Native(unittest.TestCase):
    def floor(self, words, *options):
        run = subprocess.run([FLOOR, "--cmdline", words, *options, PROBE], capture_output=True,
                             text=True, timeout=TIMEOUT, check=False)
        return run.returncode, run.stdout, run.stderr

    def test_start_is_marked_then_says_so(self):
        before = time.monotonic_ns()
        status, output, _ = self.floor("probe=start end=reboot", "--t0", str(before))
        took_us = (time.monotonic_ns() - before) / 1000
        self.assertEqual(status, 10)
        *told, last = output.splitlines()
        self.assertEqual(last, "probe: start")
        found = {name.removeprefix("floor: "): int(us) for name, us in (line.split("=") for line in told)}
        self.assertEqual(set(found), {"first_entry_us", "first_write_us"}, output)
        self.assertTrue(0 < found["first_entry_us"] <= found["first_write_us"] < took_us, output)

    def test_the_floor_can_end_at_the_mark(self):
        self.assertEqual(self.floor("probe=start end=reboot", "--mark"), (0, "", ""))

    def test_ends(self):
        for words, status in {"probe=poweroff": 0, "probe=reboot": 10, "probe=panic": 11,
                              "probe=triple": 12, "probe=hello": 0, "probe=hello end=poweroff": 0,
                              "probe=hello end=reboot": 10, "probe=hello end=panic": 11,
                              "probe=hello end=triple": 12,
                              "end=triple probe=hello end=reboot": 10}.items():
            with self.subTest(words):
                self.assertEqual(self.floor(words)[0], status)

    def test_a_power_off_that_nobody_hears_becomes_a_reset(self):
        self.assertEqual(self.floor("probe=hello sleep=0x620,1")[0], 10)

    def test_hello(self):
        self.assertEqual(self.floor("probe=hello"), (0, "probe: hello from CPL 3\n", ""))

    def test_tests_run_in_order_with_their_numbers(self):
        status, output, _ = self.floor("probe=hello quiet probe=spin 0 probe=start console=x")
        lines = output.splitlines()
        self.assertEqual((status, lines[0], lines[-1]),
                         (0, "probe: hello from CPL 3", "probe: start"))
        self.assertEqual(values(output)["spin_ms"], ["0"])

    def test_a_fault_is_reported(self):
        status, output, _ = self.floor("probe=trap probe=hello")
        found = values(output)
        self.assertEqual(status, 11)
        self.assertEqual((found["trap"], found["trap_cs"], found["trap_address"]),
                         (["14"], ["0x23"], [hex(1 << 40)]))
        self.assertNotIn("hello", output)

    def test_unknown_words_are_refused(self):
        for words, text in {"probe=nonsense": "no test is called 'nonsense'", "quiet": "no test",
                            "probe=hell": "no test", "probe=hello end=soon": "end= takes"}.items():
            with self.subTest(words):
                status, output, _ = self.floor(words)
                self.assertEqual(status, 11)
                self.assertIn(text, output)

    def test_interrupts(self):
        status, output, _ = self.floor("probe=irq 50")
        found = values(output)
        self.assertEqual(status, 0)
        self.assertEqual((found["irq_self"], found["irq_timer"]), (["50"], ["52"]))
        self.assertEqual((found["irq_woken"], found["irq_spurious"]), (["1"], ["0"]))

    def test_spin_lasts(self):
        before = time.monotonic()
        status, output, _ = self.floor("probe=spin 500")
        self.assertTrue(0.5 < time.monotonic() - before < 1.9)  # a wrong rate is wrong by far
        self.assertEqual(status, 0)
        self.assertNotEqual(values(output)["tsc_source"], ["guess"])

    def test_exits_are_measured(self):
        status, output, _ = self.floor("probe=exits 20")
        found = values(output)
        self.assertEqual(status, 0)
        for name in ("port_read_ticks", "port_write_ticks", "mmio_read_ticks", "apic_read_ticks"):
            self.assertGreater(int(found[name][0]), 0, name)

    def test_touch(self):
        status, output, _ = self.floor("probe=touch 1024", "--memory", "64")
        found = values(output)
        self.assertEqual(status, 0)
        self.assertEqual((found["touch_pages"], found["touch_wrong"]), ([str(62 * 256)], ["0"]))

    def test_the_floor_refuses(self):
        for arguments, status in [([], 64), (["--memory", "1", PROBE], 64),
                                  (["--memory", "x", PROBE], 64), (["--memory", "1048577", PROBE], 64),
                                  (["--speed", PROBE], 64), ([PROBE, PROBE], 64),
                                  (["/nonexistent"], 65), ([FLOOR], 65), (["/dev/null"], 65)]:
            with self.subTest(arguments):
                run = subprocess.run([FLOOR, *arguments], capture_output=True, text=True,
                                     timeout=TIMEOUT, check=False)
                self.assertEqual(run.returncode, status)
                self.assertEqual(len(run.stderr.splitlines()), 1)


@unittest.skipUnless(QEMU, "no qemu-system-x86_64")
class Emulated(unittest.TestCase):
    MICROVM = ("-M", "microvm,acpi=off,isa-serial=on")
    # More than a test host has: what the probe does not touch shall not be asked for.
    LARGE = ("-M", "q35,memory-backend=ram", "-object",
             "memory-backend-ram,id=ram,size=5G,reserve=off")

    def command(self, words, machine, *options):
        return [QEMU, *machine, "-accel", "tcg", "-m", "128", "-nodefaults", "-no-user-config",
                "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", PROBE, "-append",
                words, *options]

    def qemu(self, words, *options, machine=MICROVM):
        run = subprocess.run(self.command(words, machine, *options), stdin=subprocess.DEVNULL,
                             capture_output=True, text=True, timeout=TIMEOUT, check=False)
        return run.returncode, run.stdout

    def typed(self, words, *texts):
        """The output of a run that gets each of `texts` after it has said that it is ready."""
        with subprocess.Popen(self.command(words, self.MICROVM), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as process:
            try:
                output = b""
                while not output.endswith(b"=ready\r\n"):
                    byte = process.stdout.read(1)
                    self.assertTrue(byte, output)
                    output += byte
                for text in texts:
                    process.stdin.write(text)
                    process.stdin.flush()
                    time.sleep(0.2)
                return process.communicate(timeout=TIMEOUT)[0].decode()
            finally:
                process.kill()

    def test_hello_and_a_triple_fault(self):
        status, output = self.qemu("probe=hello end=triple")
        self.assertEqual(status, 0)
        self.assertIn("probe: hello from CPL 3", output)

    def test_what_the_vmm_tells(self):
        found = values(self.qemu("probe=info end=triple")[1])
        self.assertEqual((found["cmdline"], found["modules"]),
                         (["probe=info end=triple"], ["0"]))
        self.assertTrue(120 << 20 < int(found["ram_bytes"][0]) <= 128 << 20)

    def test_interrupts_and_memory(self):
        found = values(self.qemu("probe=irq 50 probe=touch 32 end=triple")[1])
        self.assertEqual((found["irq_self"], found["irq_timer"]), (["50"], ["52"]))
        self.assertEqual((found["irq_woken"], found["irq_spurious"]), (["1"], ["0"]))
        self.assertEqual((found["touch_pages"], found["touch_wrong"]), (["8192"], ["0"]))

    def test_memory_above_4_gib(self):
        status, output = self.qemu("probe=touch 4 from=0x100001001 end=reboot", "-m", "5G",
                                   machine=self.LARGE)
        found = values(output)
        self.assertEqual(status, 0)
        self.assertEqual((found["touch_pages"], found["touch_from"], found["touch_wrong"]),
                         (["1024"], ["0x100002000"], ["0"]))

    def test_every_gib_is_mapped_to_itself(self):
        # q35 has 2 GiB below the hole and the rest above 4 GiB.
        _, output = self.qemu("probe=touch 1 stride=0x4000000 end=reboot", "-m", "5G",
                              machine=self.LARGE)
        found = values(output)
        self.assertEqual((found["touch_pages"], found["touch_wrong"]), ([str(5 * 16)], ["0"]))
        self.assertGreater(int(found["touch_last"][0], 16), 6 << 30)

    def test_the_timer_that_a_bios_leaves_running_does_not_disturb(self):
        _, output = self.qemu("probe=spin 300 probe=irq 5 end=reboot", machine=("-M", "q35"))
        found = values(output)
        self.assertNotIn("trap", found)
        self.assertEqual(found["irq_timer"], ["7"])

    def test_a_panic(self):
        status, _ = self.qemu("probe=panic", "-device", "pvpanic", "-action", "panic=exit-failure",
                              machine=("-M", "q35"))
        self.assertEqual(status, 1)

    def test_a_power_off_by_its_word(self):
        # isa-debug-exit stands in for another VMM's sleep control register, because it sets a status.
        status, output = self.qemu("probe=hello sleep=0xf4,1", "-device",
                                   "isa-debug-exit,iobase=0xf4,iosize=1")
        self.assertEqual(status, 3)  # value * 2 + 1
        self.assertIn("hello", output)

    def test_input_polled(self):
        output = self.typed("probe=echo end=triple", b"abc", b"defq")
        self.assertIn("abcdefq\r\n", output)
        self.assertEqual(values(output)["echo_received"], ["7"])

    def test_input_by_interrupt(self):
        output = self.typed("probe=serial-irq end=triple", b"abc", b"0123456789" * 5, b"q")
        found = values(output)
        self.assertIn("abc" + "0123456789" * 5 + "q\r\n", output)
        self.assertEqual(found["serial_irq_received"], ["54"])
        self.assertGreaterEqual(int(found["serial_irq_interrupts"][0]), 3)

    def test_halt_stays(self):
        with subprocess.Popen(self.command("probe=hello probe=halt", self.MICROVM),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            try:
                self.assertEqual(process.stdout.readline(), b"probe: hello from CPL 3\r\n")
                with self.assertRaises(subprocess.TimeoutExpired):
                    process.wait(1)
            finally:
                process.kill()


@unittest.skipUnless(QEMU, "no qemu-system-x86_64")
class Disk(unittest.TestCase):
    """probe=blk with QEMU's disks, on both transports."""
    SIZE = 4 << 20
    MACHINES = {"mmio": ("-M", "microvm,acpi=off,isa-serial=on", "-global", "virtio-mmio.force-legacy=false",
                         "-device", "virtio-blk-device,drive=disk"),
                "pci": ("-M", "microvm,pcie=on,isa-serial=on", "-device", "virtio-blk-pci,drive=disk")}
    # QEMU 7.2 has no MCFG there, and its firmware gives no addresses.
    PCI_WORDS = "ecam=0xe0000000 pci_window=0xc0000000"

    def setUp(self):
        self.file = tempfile.NamedTemporaryFile()
        self.addCleanup(self.file.close)
        self.file.truncate(self.SIZE)

    def run_on(self, machine, words, options="", memory="128"):
        """(the values of the job's line, all of the output)"""
        run = subprocess.run(
            # Without a pvpanic, a refusal would come to its end by and by.
            [QEMU, *machine, "-device", "pvpanic", "-accel", "tcg", "-m", memory, "-nodefaults", "-no-user-config",
             "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", PROBE, "-append", f"{words} end=triple", "-drive",
             f"if=none,id=disk,file={self.file.name},format=raw{options}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        return job_values(run.stdout), run.stdout

    def each(self, words, options=""):
        """The values of both transports, from a job that must have been without a fault"""
        results = []
        for transport, machine in self.MACHINES.items():
            with self.subTest(transport=transport, words=words):
                found, output = self.run_on(machine, f"{self.PCI_WORDS} probe=blk {words}", options)
                self.assertTrue(found, output)
                self.assertEqual((found["transport"], found["errors"], found["wrong"]), (transport, 0, 0), output)
                results.append(found)
        return results

    def test_what_is_written_is_what_lies_in_the_file(self):
        for transport, machine in self.MACHINES.items():
            self.file.truncate(0)
            self.file.truncate(self.SIZE)
            words = "op=write bs=65536 depth=4 count=64 verify=1 seed=7"
            found, output = self.run_on(machine, f"{self.PCI_WORDS} probe=blk {words}")
            self.assertEqual((found["requests"], found["verified"], found["bytes"]), (64, 64, self.SIZE), output)
            self.file.seek(0)
            self.assertEqual(self.file.read(), pattern(0, self.SIZE // 512, 7), transport)

    def test_random_jobs_at_each_depth_and_size(self):
        for words in ("op=randwrite bs=4096 depth=128 queue=512 count=500", "op=randmix bs=512 depth=1 count=100",
                      "op=mix bs=1048576 depth=32 count=40", "op=randmix bs=8192 depth=33 count=300 interrupts=1",
                      "op=randwrite depth=85 count=300 indirect=0 event_idx=0",
                      "op=randwrite depth=7 count=300 event_idx=0 interrupts=1"):
            for found in self.each(f"{words} verify=1"):
                wanted = dict(pair.split("=") for pair in words.split())
                self.assertEqual((found["requests"], found["depth"]), (int(wanted["count"]), int(wanted["depth"])))
                self.assertGreater(found["verified"], 0)
                self.assertEqual(found["interrupts"] > 0, "interrupts" in wanted)

    def test_the_indices_of_the_rings_wrap(self):
        for found in self.each("op=read bs=512 depth=128 count=66000"):
            self.assertEqual(found["requests"], 66000)

    def test_the_queue_bounds_the_depth(self):
        for found in self.each("depth=128 queue=64 indirect=0 count=100"):
            self.assertEqual(found["depth"], 21)

    def test_flushes_come_between_writes(self):
        for found in self.each("op=write flush=10 count=110 verify=1"):
            self.assertEqual((found["requests"], found["flushes"], found["bytes"]), (110, 10, 409600))

    def test_no_flush_without_the_feature(self):
        _, output = self.run_on(self.MACHINES["mmio"], "probe=blk op=write flush=1 write_back=0 count=9")
        self.assertIn("the disk has no flush", output)

    def test_reads_tell_what_is_not_the_pattern(self):
        self.file.write(pattern(0, self.SIZE // 512))
        self.file.seek(1234567)
        self.file.write(b"\x55")
        self.file.flush()
        for words, wrong in (("op=read count=1024", 1), ("op=read span=1228800 count=1024", 0),
                             ("op=randread seed=2 count=10", 10)):
            found, output = self.run_on(self.MACHINES["mmio"], f"probe=blk verify=1 {words}")
            self.assertEqual((found["verified"], found["wrong"]), (found["requests"], wrong), output)
            if wrong == 1:
                self.assertEqual(values(output)["blk_wrong_sector"], [str(1234567 // 512)])

    def test_errors_are_counted(self):
        found, output = self.run_on(self.MACHINES["mmio"], "probe=blk op=write count=5", ",read-only=on")
        self.assertEqual((found["requests"], found["errors"], found["bytes"]), (0, 5, 0), output)

    def test_a_time_ends_it_too(self):
        found, output = self.run_on(self.MACHINES["mmio"], "probe=blk ms=300 pause=20")
        self.assertTrue(0.25e9 < found["ns"] < 2e9, output)
        self.assertEqual(values(output)["blk_state"], ["begin", "end"])
        self.assertLessEqual(found["p50_ns"], found["p99_ns"])
        self.assertGreater(found["p50_ns"], 0)

    def test_a_second_job_begins_anew(self):
        _, output = self.run_on(self.MACHINES["mmio"], "probe=blk probe=blk probe=touch 4 op=write verify=1 count=50")
        for line in values(output)["blk"]:
            self.assertIn(" requests=50 ", line)
            self.assertIn(" wrong=0 ", line)
        self.assertEqual(values(output)["touch_wrong"], ["0"])

    def test_refusals(self):
        for words, text in {"op=trim": "op= takes", "bs=1000": "bs= takes", "bs=2097152": "bs= takes",
                            "depth=129": "depth= takes", "depth=0": "depth= takes", "queue=2": "shorter than a request",
                            "disk=1": "no such disk", "span=4194305": "more than the disk has", "span=512": "no block of this size"}.items():
            with self.subTest(words):
                found, output = self.run_on(self.MACHINES["mmio"], f"probe=blk {words}")
                self.assertFalse(found)
                self.assertIn(text, output)
        _, output = self.run_on(self.MACHINES["mmio"], "probe=blk depth=128 bs=1048576", memory="96")
        self.assertIn("not enough RAM", output)
        _, output = self.run_on(self.MACHINES["pci"], "probe=blk ecam=0xe0000000")
        self.assertIn("pci_window=", output)
        legacy = [word for word in self.MACHINES["mmio"] if "legacy" not in word and word != "-global"]
        self.assertIn("legacy", self.run_on(legacy, "probe=blk")[1])


if __name__ == "__main__":
    PROBE, FLOOR = sys.argv[1:3]
    if not kvm_usable() and not QEMU:
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
