#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Guests whose memory comes out of a snapshot while they run, plain or compressed."""
import errno
import json
import pathlib
import re
import subprocess
import sys
import unittest

SUPPORT = pathlib.Path(__file__).resolve().parents[1] / "support"
sys.path.insert(0, str(SUPPORT))
from probe_hold import HoldTest  # noqa: E402
from vireo_process import forbidding_each, run  # noqa: E402

LONG = "60000"  # a timer of that many ms does not come
DAMAGED, REFUSED = 65, 1
USERFAULTFD, IOCTL, USERFAULTFD_IOC_NEW = 323, 16, 0xaa00
THERE = "all of guest memory is there"


def may_watch():
    """Whether this user may use userfaultfd so that it serves the kernel's own faults."""
    found = run("doctor")
    return re.search(r"userfaultfd, KVM's faults included *by ", found.output) is not None


class Filled(HoldTest):
    def setUp(self):
        super().setUp()
        self.file = self.directory / "vm.vsnap"

    def saved(self, *options, words=f"{LONG} memory=24"):
        self.start(words, *options)
        self.check()
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate(timeout=30)

    def saved_both_ways(self, *options, **more):
        """The file with its memory as it is, and compressed."""
        self.saved(*options, **more)
        yield self.file
        done = run("snapshot", "compress", self.file)
        self.assertEqual(done.status, 0, done)
        yield self.file

    def fill(self, *options):
        self.begin("restore", self.file, "--memory", "fill", *options)
        self.checks = 1

    def memory(self, file):
        """As its description has it."""
        memory = self.directory / "memory.raw"
        subprocess.run([SUPPORT / "vsnap.py", file, memory], check=True, capture_output=True)
        return memory.read_bytes()

    def test_then_the_file_is_not_needed(self):
        for file in self.saved_both_ways("--rng"):
            content = file.read_bytes()
            self.fill()
            self.check()
            if may_watch():
                line = b""
                while THERE.encode() not in line:
                    line = self.process.stderr.readline()
                    self.assertTrue(line, self.process.poll())
            with open(file, "r+b") as spoiled:
                spoiled.truncate(4096)
            self.check()
            self.quit()
            file.write_bytes(content)

    def test_a_snapshot_while_memory_comes(self):
        config = self.directory / "vm.toml"
        config.write_text("[machine]\ntrack_dirty = true\n", encoding="ascii")
        first, diff, whole = (self.directory / f"{name}.vsnap" for name in ("first", "diff", "whole"))
        for _ in self.saved_both_ways(config):
            self.fill()
            self.control("snapshot", first)
            self.check()
            self.control("pause")
            self.control("snapshot", diff, "--diff")
            self.control("snapshot", whole)
            self.control("resume")
            self.check()
            self.quit()
            merged = self.directory / "merged.vsnap"
            done = run("snapshot", "merge", first, diff, "--output", merged)
            self.assertEqual(done.status, 0, done)
            self.assertTrue(self.memory(merged) == self.memory(whole))
            for file, checks in ((first, 1), (merged, 2)):
                self.begin("restore", file)
                self.checks = checks
                self.check()
                self.quit()

    def test_a_paused_guest_is_saved_as_it_was(self):
        for _ in self.saved_both_ways():
            before = self.memory(self.file)
            self.begin("restore", self.file, "--memory", "fill")
            self.control("pause")
            self.control("snapshot", self.directory / "again.vsnap")
            self.control("kill")
            self.process.communicate(timeout=30)
            after = self.memory(self.directory / "again.vsnap")
            differ = [page for page in range(0, len(before), 4096) if before[page:page + 4096] != after[page:page + 4096]]
            # What a guest does in a moment, and its generation.
            self.assertLess(len(differ), 64)

    def test_a_diff_to_its_file_is_refused(self):
        for _ in self.saved_both_ways():
            self.fill()
            ended = run("ctl", self.socket, "snapshot", self.directory / "d.vsnap", "--diff", "--parent", self.file)
            self.assertEqual(ended.status, REFUSED, ended)
            self.assertIn("machine.track_dirty", ended.errors)
            self.quit()

    def test_a_reboot_while_memory_comes(self):
        config = self.directory / "vm.toml"
        config.write_text('[machine]\non_reboot = "restart"\n', encoding="ascii")
        for _ in self.saved_both_ways(config, words=f"{LONG} memory=24 probe=reboot"):
            self.fill()
            self.reboot()
            self.check()
            self.control("kill")
            self.process.communicate(timeout=30)

    def test_a_damaged_page_ends_the_vm_with_its_file(self):
        for file in self.saved_both_ways():
            whole = file.read_bytes()
            content = bytearray(whole)
            # In the middle of memory: that is what the guest holds.
            begin, size = (int.from_bytes(content[at:at + 8], "little") for at in (0xb0, 0xb8))
            content[begin + size // 2] ^= 0x40
            file.write_bytes(content)
            for memory in ("fill", "copy"):
                ended = run("restore", file, "--memory", memory, stdin=b"ccccq")
                self.assertEqual(ended.status, DAMAGED, (memory, ended))
                self.assertRegex(ended.errors, f"(?m)^vireo: {re.escape(str(file))}: (frame|the page) .*: is damaged: .*\n\\Z")
            file.write_bytes(whole)

    def test_prefault_maps_all_of_the_file(self):
        self.saved()
        mapped = []
        for options in ((), ("--prefault",)):
            self.begin("restore", self.file, *options)
            self.control("pause")
            status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
            mapped.append(int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) << 10)
            self.control("snapshot", self.directory / "d.vsnap", "--diff")  # they are still the file's
            self.assertLess(json.loads(run("snapshot", "info", self.directory / "d.vsnap", "--json").output)["data_bytes"],
                            16 << 20)
            self.control("resume")
            self.checks = 1
            self.check()
            self.quit()
        self.assertGreater(mapped[1] - mapped[0], 12 << 20, mapped)

    def test_without_userfaultfd_it_is_read_first(self):
        denied = forbidding_each((USERFAULTFD, errno.EPERM, {}), (IOCTL, errno.EPERM, {1: USERFAULTFD_IOC_NEW}))
        for file in self.saved_both_ways():
            ended = run("restore", file, "--memory", "fill", stdin=b"cq", preexec_fn=denied)
            self.assertEqual(ended.status, 0, ended)
            self.assertIn("probe: hold_memory=ok", ended.output)
            self.assertIn("memory is read before the guest goes on: userfaultfd: Operation not permitted", ended.errors)


if __name__ == "__main__":
    unittest.main()
