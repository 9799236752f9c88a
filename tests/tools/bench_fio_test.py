#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo-bench block with fio: what it makes of fio's result, and the command lines of VMMs with a Linux guest."""
import argparse
import base64
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/bench"))
import block  # noqa: E402
import fio  # noqa: E402
import linux_guest  # noqa: E402
import measure  # noqa: E402
import vmms  # noqa: E402

JOB = block.parse_job("randwrite/4K/32")
OTHER = block.parse_job("read/1M/8")


def side(**figures):
    return {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "lat_ns": {}} | figures


def told(job, error=0, **figures):
    active = side(lat_ns={"percentile": {"50.000000": 2000, "99.000000": 9000}}, **figures)
    write = "write" in job.op
    return {"jobname": fio.name_of(job), "error": error, "read": side() if write else active,
            "write": active if write else side()}


def output(*jobs, status=0):
    packed = base64.b64encode(gzip.compress(b"a note\n" + json.dumps({"jobs": jobs}).encode()))
    return b"fio: result " + packed + b"\r\nfio: status %d\r\n" % status


class Figures(unittest.TestCase):
    # In between 4 s of the process, 2 of them the guest's by ticks, of which there was one for every 1.25 s.
    TIMES = {("begin", "randwrite-4K-32"): block.Times(1.0, {"1": (0.0, 0.0, 0.5)}, (10.0, 20.0), 100.0),
             ("end", "randwrite-4K-32"): block.Times(5.0, {"1": (3.0, 0.5, 2.5), "2": (0.1, 0.1, 0.0)}, (14.0, 24.0),
                                                     100.0 + 5.0)}

    def read(self, text, times=None):
        # As of a machine with one processor, whatever this one has.
        fio.block.os.cpu_count, before = (lambda: 1), fio.block.os.cpu_count
        try:
            return fio.read_figures([JOB], text, self.TIMES if times is None else times)
        finally:
            fio.block.os.cpu_count = before

    def test_figures(self):
        found = self.read(output(told(JOB, total_ios=1000, iops=500.0, bw_bytes=2048000)))
        self.assertEqual(found, {JOB.name: {"iops": 500.0, "bandwidth": 2048000, "p50": 2e-6, "p99": 9e-6,
                                            "vmm_cpu": 0.0015, "others": 0.0}})

    def test_what_is_no_good_run(self):
        good = told(JOB, total_ios=1000, iops=500.0, bw_bytes=2048000)
        idle = {key: block.Times(1.0, {"1": (0.0, 0.0, 0.0)}) for key in self.TIMES}
        for text, times, why in ((output(told(JOB, error=5, total_ios=1)), None, "error 5"),
                                 (output(told(JOB)), None, "no requests"), (output(good), {}, "were not seen"),
                                 (output(good, status=1), None, "status 1"), (b"", None, "without a result"),
                                 (output(good).partition(b"\n")[0], None, "without a result"),
                                 (b"fio: status 127\r\n", None, "status 127"),
                                 (b"fio: result AAAA\r\nfio: status 0\r\n", None, "its result is none"),
                                 (output(good), idle, "guest time")):
            with self.subTest(why), self.assertRaisesRegex(ValueError, why):
                self.read(text, times)

    def test_each_job_of_a_run(self):
        runs = {"ours": [measure.Run(True, "", extra={JOB.name: {"iops": 1.0}, OTHER.name: {"iops": 2.0}}),
                         measure.Run(False, "it said no")]}
        found = fio.results_of(OTHER, runs)["ours"]
        self.assertEqual((found[0].extra, found[1].ok), ({"iops": 2.0}, False))


class Guests(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.work = pathlib.Path(directory.name)
        self.arguments = argparse.Namespace(vireo="v", qemu="q", firecracker="f", cloud_hypervisor="c",
                                            firecracker_filters=None)
        self.guest = vmms.Guest("k", linux_guest.ADDED_WORDS, 256,
                                (vmms.Disk("root", "r.ext4", readonly=True), vmms.Disk("bench", "d.img")), 2, "i")

    def contenders(self, **options):
        return {each.name: each for each in vmms.contenders(self.arguments, self.guest, self.work, **options)}

    def test_all_of_them(self):
        self.assertEqual(len(self.contenders()), 11)
        self.assertEqual(list(self.contenders(all_engines=False)), [
            "vireo mmio", "vireo pci", "qemu io_uring mmio", "qemu io_uring pci", "firecracker Sync mmio",
            "firecracker Sync pci", "cloud-hypervisor pci"])

    def test_each_has_both_disks_and_one_of_them_only_to_be_read(self):
        for name, contender in self.contenders().items():
            words = " ".join(contender.command)
            words += "".join(pathlib.Path(word).read_text(encoding="utf-8") for word in contender.command
                             if word.startswith(str(self.work)))
            with self.subTest(name):
                self.assertEqual((words.count("r.ext4"), words.count("d.img")), (1, 1))
                self.assertRegex(words, r'readonly=on|readonly = true|"is_read_only": true')
                self.assertEqual("pci=off" in words, name.endswith("mmio"))
                self.assertEqual("vireo.end=poweroff" in words, name.startswith("cloud"))
                self.assertEqual("reboot=t" in words, name.startswith("qemu"))

    def test_an_archive_behind_the_initramfs(self):
        (self.work / "in.cpio").write_bytes(b"x" * 700)
        out = linux_guest.add_files(self.work / "in.cpio", {"one.sh": "echo 1\n", "two": ""}, self.work / "out.cpio")
        data = out.read_bytes()
        self.assertEqual(data[:1024], b"x" * 700 + bytes(324))
        for options, said in ((["-it"], "one.sh\ntwo\n"), (["-i", "--to-stdout", "one.sh"], "echo 1\n")):
            done = subprocess.run(["cpio", "--quiet", *options], input=data[1024:], capture_output=True, check=True)
            self.assertEqual(done.stdout.decode(), said)

    def test_the_jobs(self):
        text = fio.job_file([JOB, OTHER], 1.5)
        self.assertEqual(text.count("\nruntime=1500ms\n"), 1)
        self.assertIn("[randwrite-4K-32]\nrw=randwrite\nbs=4096\niodepth=32\n", text)
        self.assertIn("fio: end read-1M-8 ", text)
        # fio takes what is behind these for a comment.
        self.assertNotRegex(text, "[;#]")
        self.assertEqual(fio.memory_for([JOB, OTHER]), 128 + 8)


if __name__ == "__main__":
    unittest.main()
