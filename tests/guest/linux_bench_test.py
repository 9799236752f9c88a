#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo-bench with a Linux guest: fio's jobs on its disk, a boot that mounts one, and a restore.

Needs root, for a file system of its own, and a KVM that runs kernel code: the test host has both.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
from vireo_process import ARTIFACTS, TIMEOUT, VIREO  # noqa: E402


ROOTFS = ("--rootfs", f"{ARTIFACTS}/rootfs.ext4")


class Linux(unittest.TestCase):
    def bench(self, *words):
        with tempfile.TemporaryDirectory() as directory:
            result = pathlib.Path(directory, "r.json")
            done = subprocess.run(
                [sys.executable, ROOT / "tools/vireo-bench", *words, "--vireo", VIREO, "--kernel",
                 f"{ARTIFACTS}/cloud/vmlinux", "--initramfs", f"{ARTIFACTS}/initramfs.cpio", "--runs", "1",
                 "--timeout", str(TIMEOUT), "--json", result],
                capture_output=True, check=False, timeout=TIMEOUT)
            self.assertEqual(done.returncode, 0, done)
            return json.loads(result.read_text(encoding="utf-8"))

    def test_fio(self):
        found = self.bench("block", *ROOTFS, "--ext4", "--disk-size", "8", "--seconds", "0.5", "--jobs", "randread/4K/1",
                           "write/64K/8")
        self.assertEqual([job["name"] for job in found["jobs"]], ["4K randread, depth 1", "64K write, depth 8"])
        for job in found["jobs"]:
            self.assertEqual([(row["name"], row["good"]) for row in job["contenders"]],
                             [("vireo mmio", 1), ("vireo pci", 1)])
            for row in job["contenders"]:
                median = {key: figure["median"] for key, figure in row["figures"].items()}
                self.assertAlmostEqual(median["bandwidth"] / median["iops"] / job["block_size"], 1.0, delta=0.01)
                self.assertTrue(0 < median["p50"] <= median["p99"], median)
                self.assertGreater(median["vmm_cpu"], 0)

    def test_boot_with_a_disk(self):
        found = self.bench("boot", *ROOTFS)
        self.assertEqual([(row["name"], row["good"]) for row in found["contenders"]],
                         [("vireo mmio", 1), ("vireo pci", 1)])
        for row in found["contenders"]:
            self.assertLess(row["figures"]["marker"]["median"], row["figures"]["wall"]["median"])

    def test_restore(self):
        saved, restored = self.bench("restore", "--sizes", "160", "--saves", "1")["parts"]
        self.assertEqual([(row["name"], row["good"]) for row in saved["contenders"]], [("vireo", 1)])
        self.assertLess(saved["contenders"][0]["figures"]["file"]["median"], 160 << 20)
        self.assertEqual([(row["name"], row["good"]) for row in restored["contenders"]],
                         [("vireo", 1), ("vireo copy", 1), ("vireo standby", 1)])
        for row, first in zip(restored["contenders"], ("entry", "entry", "loaded")):
            self.assertLess(row["figures"][first]["median"], row["figures"]["answer"]["median"])


if __name__ == "__main__":
    unittest.main()
