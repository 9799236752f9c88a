#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo's disks with the probe as their driver, over MMIO and PCI: on any KVM."""
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_disk import job_values, pattern  # noqa: E402
from vireo_process import PROBE, run  # noqa: E402

SIZE = 8 << 20


class Disks(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name)
        self.image = self.path / "disk.img"
        self.image.write_bytes(bytes(SIZE))

    def job(self, transport, words, *, disks=(), keys=""):
        """(the job's values, how vireo ended), with the image as the first disk"""
        disks = [f"id = \"first\"\npath = {json.dumps(str(self.image))}\n{keys}", *disks]
        acpi = "acpi=off" if transport == "mmio" else ""  # the probe reads no tables
        config = self.path / "vm.toml"
        config.write_text(f'[machine]\nmemory = "160M"\ntransport = "{transport}"\n[boot]\n'
                          f"kernel = {json.dumps(PROBE)}\ncmdline = \"probe=blk {words} {acpi}\"\n"
                          + "".join(f"[[disk]]\n{disk}\n" for disk in disks), encoding="utf-8")
        ended = run("run", config)
        return job_values(ended.output), ended

    def each(self, words, **keywords):
        """The values of both transports, from a job that must have been without a fault"""
        results = []
        for transport in ("mmio", "pci"):
            with self.subTest(transport=transport, words=words):
                found, ended = self.job(transport, words, **keywords)
                self.assertEqual(ended.status, 0, ended)
                self.assertEqual((found["transport"], found["errors"], found["wrong"]), (transport, 0, 0), ended)
                results.append(found)
        self.assertEqual(len(results), 2)
        return results

    def test_what_is_written_is_what_lies_in_the_file(self):
        for transport in ("mmio", "pci"):
            seed = len(transport)
            found, ended = self.job(transport, f"op=write bs=65536 depth=8 count=128 verify=1 seed={seed}")
            self.assertEqual((found.get("requests"), found.get("verified")), (128, 128), ended)
            self.assertEqual(self.image.read_bytes(), pattern(0, SIZE // 512, seed), transport)

    def test_what_lies_in_the_file_is_what_is_read(self):
        self.image.write_bytes(pattern(0, SIZE // 512, 3))
        for words in ("op=read bs=1048576 depth=8 count=16", "op=randread bs=512 depth=128 count=3000"):
            self.each(f"{words} verify=1 seed=3")
        with open(self.image, "r+b") as file:
            file.seek(5000000)
            file.write(b"\x55")
        for transport in ("mmio", "pci"):
            found, ended = self.job(transport, "op=read count=2048 verify=1 seed=3")
            self.assertEqual((found["verified"], found["wrong"]), (2048, 1), ended)
            self.assertIn(f"blk_wrong_sector={5000000 // 512}", ended.output)

    def test_jobs_of_each_size_and_depth(self):
        for words in ("op=randwrite bs=4096 depth=1 count=200", "op=randwrite bs=4096 depth=128 count=5000",
                      "op=randmix bs=512 depth=32 count=5000", "op=mix bs=1048576 depth=85 count=300",
                      "op=randmix bs=65536 depth=7 count=500", "op=randmix depth=32 count=2000 flush=5",
                      "op=write depth=32 count=500 write_back=0"):
            for found in self.each(f"{words} verify=1"):
                wanted = dict(pair.split("=") for pair in words.split())
                self.assertEqual((found["requests"], found["depth"]),
                                 (int(wanted["count"]), int(wanted["depth"])), found)
                self.assertEqual(found["interrupts"], 0)
                self.assertEqual(found["flushes"] > 0, "flush" in wanted)

    def test_with_and_without_each_feature_of_the_ring(self):
        for words in ("interrupts=1", "interrupts=1 event_idx=0", "event_idx=0", "indirect=0", "indirect=0 event_idx=0",
                      "interrupts=1 indirect=0 event_idx=0", "queue=16", "queue=4"):
            for found in self.each(f"op=randmix bs=4096 depth=32 count=2000 verify=1 {words}"):
                self.assertEqual(found["requests"], 2000)
                self.assertEqual(found["interrupts"] > 0, "interrupts" in words)

    def test_the_indices_of_the_rings_wrap(self):
        for found in self.each("op=randread bs=512 depth=64 count=140000"):
            self.assertEqual(found["requests"], 140000)

    def test_a_disk_that_is_read_only(self):
        before = self.image.read_bytes()
        for transport in ("mmio", "pci"):
            found, ended = self.job(transport, "op=write depth=4 count=20", keys="readonly = true")
            self.assertEqual((found["requests"], found["errors"]), (0, 20), ended)
            found, ended = self.job(transport, "op=read depth=4 count=20", keys="readonly = true")
            self.assertEqual((found["requests"], found["errors"]), (20, 0), ended)
        self.assertEqual(self.image.read_bytes(), before)

    def test_the_second_disk_is_another(self):
        other = self.path / "other.img"
        other.write_bytes(bytes(SIZE))
        second = f"id = \"second\"\npath = {json.dumps(str(other))}"
        self.each("op=write bs=65536 depth=4 count=128 verify=1 disk=1", disks=[second])
        self.assertEqual(other.read_bytes(), pattern(0, SIZE // 512))
        self.assertEqual(self.image.read_bytes(), bytes(SIZE))

    def test_direct_io(self):
        self.each("op=randmix bs=4096 depth=32 count=500 verify=1", keys="direct = true")


if __name__ == "__main__":
    unittest.main()
