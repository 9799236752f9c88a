#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo-bench block: what it makes of a job's line and of the threads of a VMM, and its runs."""
import argparse
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools/bench"), str(ROOT / "tests/support")]
import block  # noqa: E402
import measure  # noqa: E402
from vireo_process import PROBE, VIREO  # noqa: E402

QEMU = shutil.which("qemu-system-x86_64")
KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
LINE = (b"probe: blk_state=begin\r\nprobe: blk_state=end\r\n"
        b"probe: blk=randread transport=mmio bs=4096 depth=21 requests=1000 bytes=4096000 ns=500000000 p50_ns=2000 "
        b"p99_ns=9000 flushes=0 errors=0 verified=0 wrong=0 notifications=250 interrupts=0\r\n")


def contender(name, commands=(), good=3, **figures):
    values = {key: [value] * 3 for key, value in figures.items()}
    runs = [measure.Run(True, "", extra={key: column[i] for key, column in values.items()}, inspected=True)
            for i in range(3)] if figures else [measure.Run(False, "it said no")]
    return {"name": name, "command": [name, *commands], "runs": 3, "good": good if figures else 0,
            "figures": measure.figures(runs), "values": measure.columns(runs),
            "failures": [] if figures else ["it said no"]}


FIGURES = {"iops": 2000.0, "bandwidth": 8.2e6, "p50": 2e-6, "p99": 9e-6, "vmm_cpu": 3e-6, "doorbells": 0.25,
           "others": 0.07, "depth": 32}


def result(*contenders):
    return {"benchmark": "block", "machine": {"cpu": "x"}, "settings": {"runs": 3},
            "jobs": [{"name": "4K randread, depth 32", "op": "randread", "block_size": 4096, "depth": 32,
                      "contenders": list(contenders)}]}


class Jobs(unittest.TestCase):
    def test_all_of_them_and_the_usual_ones(self):
        self.assertEqual(len(set(block.ALL_JOBS)), 36)
        for text in (*block.ALL_JOBS, *block.DEFAULT_JOBS):
            op, size, depth = text.split("/")
            job = block.parse_job(text)
            self.assertEqual((job.op, job.size, job.depth), (op, size, int(depth)))

    def test_words_for_the_probe(self):
        self.assertIn("op=write bs=65536 depth=7 ms=1500 ", block.parse_job("write/64K/7").words(1.5))

    def test_what_is_no_job_is_refused(self):
        for text in ("", "read", "read/4K", "read/4K/1/1", "trim/4K/1", "read/8K/1", "read/4K/0", "read/4K/129",
                     "read/4K/-1", "read/4K/x"):
            with self.subTest(text), self.assertRaises(ValueError):
                block.parse_job(text)

    def test_memory(self):
        self.assertEqual(block.parse_job("read/1M/128").memory, 128 + block.PROBE_MIB)
        self.assertEqual(block.parse_job("read/4K/1").memory, 1 + block.PROBE_MIB)


class Processor(unittest.TestCase):
    def test_the_guest_is_left_out_and_its_exits_are_not(self):
        before = block.Times(10.0, {"1": (1.0, 0.5, 0.0), "2": (8.0, 0.25, 7.5)})
        after = block.Times(13.0, {"1": (1.5, 0.7, 0.0), "2": (10.0, 0.5, 9.25)})
        # 3 s in all, 2 of them the vCPU's, 0.25 of these in the kernel
        self.assertAlmostEqual(block.vmm_seconds(before, after), 1.25)

    def test_threads_that_come_and_go_count(self):
        before = block.Times(1.0, {"1": (1.0, 0.1, 0.0), "gone": (0.1, 0.1, 0.0)})
        after = block.Times(2.0, {"1": (1.0, 0.1, 0.0), "2": (0.5, 0.125, 0.375)})
        self.assertAlmostEqual(block.vmm_seconds(before, after), 0.625)

    def test_without_a_vcpu_there_is_no_figure(self):
        self.assertIsNone(block.vmm_seconds(block.Times(1, {}), block.Times(2, {"1": (1.0, 0.5, 0.0)})))

    def test_what_others_took(self):
        before = block.Times(1.0, {}, (5.0, 20.0))
        self.assertAlmostEqual(block.others_share(before, block.Times(2.5, {}, (7.5, 24.0))), 0.25)
        # Ticks may tell less than the process's own clock.
        self.assertEqual(block.others_share(before, block.Times(3.0, {}, (6.5, 24.0))), 0.0)
        self.assertEqual(block.others_share(before, before), 0.0)

    def test_times_of_this_process(self):
        found = block.read_times(os.getpid())
        busy, processors = found.machine
        self.assertTrue(found.process < busy < processors)
        used, system, guest = found.threads[str(os.getpid())]
        self.assertTrue(0 < used <= found.process)
        self.assertTrue(0 <= system <= used + 0.1)
        self.assertEqual(guest, 0)


class Line(unittest.TestCase):
    TIMES = {("begin",): block.Times(1.0, {"1": (0.0, 0.0, 0.0)}, (10.0, 20.0)),
             ("end",): block.Times(2.0, {"1": (0.75, 0.0, 0.7)}, (12.0, 22.0))}

    def test_figures(self):
        self.assertEqual(block.read_figures(LINE, self.TIMES),
                         {"iops": 2000.0, "bandwidth": 8192000.0, "p50": 2e-6, "p99": 9e-6, "vmm_cpu": 0.00025,
                          "doorbells": 0.25, "others": 0.5, "depth": 21})

    def test_what_is_no_good_run(self):
        only_begin = {("begin",): self.TIMES["begin",]}
        for line, times, why in ((LINE.replace(b"errors=0", b"errors=2"), self.TIMES, "2 errors"),
                                 (LINE.replace(b"requests=1000", b"requests=0"), self.TIMES, "0 requests"),
                                 (LINE[:-2], self.TIMES, "without a result"), (b"", self.TIMES, "without a result"),
                                 (LINE, only_begin, "guest time"), (LINE, {}, "guest time")):
            with self.subTest(why), self.assertRaisesRegex(ValueError, why):
                block.read_figures(line, times)


class Reports(unittest.TestCase):
    def text(self, *contenders):
        out = io.StringIO()
        block.table(result(*contenders), out)
        return out.getvalue()

    def test_table(self):
        text = self.text(contender("ours", **FIGURES), contender("theirs", ["--x"], **FIGURES),
                         contender("shallow", **FIGURES | {"depth": 21}), contender("broken"))
        lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and ":" not in line}
        for word in ("2000/s", "2000 – 2000", " 1.00 ", "8.2 MB/s", "2 µs", "9 µs", "3 µs", "0.25", "7%", "3/3"):
            self.assertIn(word, lines["ours"])
        self.assertIn("shallow (depth 21)", lines["shallow"])
        self.assertIn("broken                             no good run: it said no", text)
        self.assertIn("theirs: theirs --x", text)

    def test_the_ratio_is_to_the_first_that_ran_on_the_transport(self):
        text = self.text(contender("broken mmio"), contender("ours mmio", **FIGURES), contender("ours pci", **FIGURES),
                         contender("theirs pci", **FIGURES | {"iops": 800.0}))
        for name, ratio in (("ours mmio", " 1.00 "), ("ours pci", " 1.00 "), ("theirs pci", " 0.40 ")):
            self.assertRegex(text, f"  {name} .*{ratio}")

    def test_a_ratio_is_of_rounds_and_not_of_medians(self):
        rounds = (100.0, 200.0, 400.0, 300.0, 900.0, 100.0)
        ours, theirs = contender("ours pci", **FIGURES), contender("theirs pci", **FIGURES)
        for each, values in ((ours, rounds), (theirs, [1.25 * value for value in rounds])):
            each["values"]["iops"], each["runs"], each["good"] = list(values), 6, 6
        found = block.ratio(theirs, ours)
        for value in found:
            self.assertAlmostEqual(value, 1.25)
        self.assertIn("1.25 – 1.25", self.text(ours, theirs))
        theirs["good"] = 5  # which of them are of the same round is not known then
        self.assertEqual(block.ratio(theirs, ours), (1.0, None, None))

    def test_page(self):
        text = block.page(result(contender("ours", **FIGURES), contender("a<b", **FIGURES), contender("broken")))
        for title in block.TITLES.values():
            self.assertIn(f"<h3>{title}</h3><svg", text)
        self.assertEqual(text.count("<circle"), 2 * 3 * len(block.TITLES))
        self.assertIn("a&lt;b", text)
        self.assertNotIn("a<b", text)


class CommandLine(unittest.TestCase):
    def test_what_does_not_go_together_is_refused(self):
        fio = ["--kernel", "k", "--initramfs", "i", "--rootfs", "r", "--jobs", "read/4K/1"]
        for words, said in ((["block"], "block needs --probe"),
                            (["block", "--probe", "p", "--jobs", "read/4K/1000"], "no job is called read/4K/1000"),
                            (["block", "--probe", "p", "--cpus", "2"], "block takes no --cpus"),
                            (["block", "--probe", "p", "--kvmtool", "k"], "block takes no --kvmtool"),
                            (["block", "--probe", "p", "--kernel", "k"], "block with --probe takes no --kernel"),
                            (["block", "--kernel", "k", "--initramfs", "i"], "for fio --rootfs"),
                            (["block", *fio, "--memory", "128"], "need 129"),
                            (["boot", *fio[:6], "--kvmtool", "k"], "boot --rootfs takes no --kvmtool"),
                            (["memory", "--rootfs", "r"], "--rootfs is for boot and block"),
                            (["boot", "--ext4"], "--ext4 is for block"),
                            (["block", "--probe", "p", "--append", "x"], "--append goes with --explain"),
                            (["block", "--probe", "p", "--explain"], "--explain is for boot"),
                            (["block", "--probe", "p", "--together", "2"], "--together is for start"),
                            (["block", "--probe", "p", "--seconds", "0"], "--seconds wants"),
                            (["block", "--probe", "p", "--jobs", "read/1M/128", "--memory", "128"], "need 144"),
                            (["start", "--disk-size", "1"], "--disk-size is for block"),
                            (["boot", "--explain", "--jobs", "all"], "--jobs is for block")):
            with self.subTest(words):
                done = subprocess.run([sys.executable, ROOT / "tools/vireo-bench", *words, "--vireo", "/none"],
                                      capture_output=True, check=False)
                self.assertEqual(done.returncode, 2)
                self.assertIn(said, done.stderr.decode())


class Runs(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.work = pathlib.Path(directory.name)
        self.disk = self.work / "disk.img"
        block.make_disk(self.disk, 4 << 20)

    def script(self, text, timeout=60.0):
        return block.run_job(measure.Contender("script", [sys.executable, "-c", text]), timeout, self.disk)

    def test_a_process_that_says_nothing_useful(self):
        run = self.script("print('it cannot be')")
        self.assertFalse(run.ok)
        self.assertIn("without a result: it cannot be", run.why)

    def test_a_process_that_hangs_is_ended(self):
        self.assertFalse(self.script("import time; time.sleep(1000)", timeout=0.5).ok)

    def test_a_process_without_a_guest_has_no_figures(self):
        run = self.script(f"import sys, time; sys.stdout.buffer.write({LINE!r}); sys.stdout.flush(); time.sleep(1000)")
        self.assertIn("guest time", run.why)

    @unittest.skipUnless(KVM, "no usable /dev/kvm")
    def test_the_program_with_vireo(self):
        done = subprocess.run(
            [sys.executable, ROOT / "tools/vireo-bench", "block", "--vireo", VIREO, "--probe", PROBE, "--runs", "2",
             "--seconds", "0.2", "--disk-size", "8", "--jobs", "randread/4K/1", "write/64K/8", "--json",
             self.work / "r.json", "--html", self.work / "r.html"], capture_output=True, check=False, timeout=300)
        self.assertEqual(done.returncode, 0, done)
        found = json.loads((self.work / "r.json").read_text(encoding="utf-8"))
        self.assertEqual([job["name"] for job in found["jobs"]], ["4K randread, depth 1", "64K write, depth 8"])
        for job in found["jobs"]:
            self.assertEqual([(row["name"], row["good"], row["figures"]["depth"]["median"])
                              for row in job["contenders"]],
                             [("vireo mmio", 2, job["depth"]), ("vireo pci", 2, job["depth"])])
        self.assertIn("<svg", (self.work / "r.html").read_text(encoding="utf-8"))

    @unittest.skipUnless(QEMU and KVM, "no QEMU or no usable /dev/kvm")
    def test_qemu_on_each_transport(self):
        job = block.parse_job("randwrite/4K/32")
        arguments = argparse.Namespace(vireo=VIREO, qemu=QEMU, probe=PROBE, memory=128, seconds=0.5,
                                       firecracker=None, cloud_hypervisor=None)
        found = {each.name: each for each in block.contenders(arguments, job, self.work, self.disk)}
        for transport in ("mmio", "pci"):
            run = block.run_job(found[f"qemu threads {transport}"], 60, self.disk)
            self.assertTrue(run.ok, run.why)
            self.assertEqual(run.extra["depth"], 32)
            self.assertAlmostEqual(run.extra["bandwidth"] / run.extra["iops"], 4096)
            # Some of each processor, and not more than there is.
            self.assertTrue(0 < run.extra["vmm_cpu"] * run.extra["iops"] < os.cpu_count(), run.extra)


if __name__ == "__main__":
    unittest.main()
