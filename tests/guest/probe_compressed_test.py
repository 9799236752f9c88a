#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose memory is compressed: made, looked at, merged, restored, damaged."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

SUPPORT = pathlib.Path(__file__).resolve().parents[1] / "support"
sys.path.insert(0, str(SUPPORT))
from probe_hold import HoldTest  # noqa: E402
from vireo_process import run, said_on_terminal  # noqa: E402

LONG = "60000"  # a timer of that many ms does not come
DAMAGED, USAGE, MISSING = 65, 64, 66


class Snapshots(HoldTest):
    def setUp(self):
        super().setUp()
        self.file = self.directory / "vm.vsnap"

    def saved(self, *options, words=f"{LONG} memory=8"):
        """A snapshot of a guest that was checked once."""
        self.start(words, *options)
        self.check()
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate(timeout=30)

    def snapshot(self, *words):
        done = run("snapshot", *words)
        self.assertEqual((done.status, done.output, done.errors), (0, "", ""))

    def info(self, file):
        return json.loads(run("snapshot", "info", file, "--json").output)

    def memory(self, file):
        """As its description has it."""
        memory = self.directory / "memory.raw"
        subprocess.run([SUPPORT / "vsnap.py", file, memory], check=True, capture_output=True)
        return memory.read_bytes()

    def goes_on(self, file, *options, checks=1):
        self.begin("restore", file, *options)
        self.checks = checks
        self.check()
        self.quit()


class Compressed(Snapshots):
    def test_how_far_it_is(self):
        """On a terminal, and gone at the end; elsewhere a command says nothing (snapshot())."""
        config = self.directory / "vm.toml"
        config.write_text("[machine]\ntrack_dirty = true\n", encoding="ascii")
        diff, whole, split = (self.directory / f"{name}.vsnap" for name in ("diff", "whole", "split"))
        self.start(f"{LONG} memory=8", config)
        self.control("snapshot", self.file)
        self.check()
        self.control("snapshot", diff, "--diff", "--then", "stop")
        self.process.communicate(timeout=30)
        for words in (("verify", self.file), ("merge", self.file, diff, "--output", whole), ("compress", whole),
                      ("verify", whole), ("decompress", whole), ("split", whole, "--output", split),
                      ("verify", split)):
            with self.subTest(words):
                said = said_on_terminal("snapshot", *words)
                percents = [int(percent) for percent in re.findall(r"\[#* *\] +(\d+) %", said)]
                self.assertEqual((percents[0], percents[-1]), (0, 100), said)
                self.assertEqual(percents, sorted(set(percents)))
                self.assertTrue(said.endswith("\r\x1b[K"), said)

    def test_it_is_the_same_snapshot(self):
        self.saved("--rng")
        memory = self.memory(self.file)
        self.assertTrue(any(memory))
        before = self.info(self.file)
        packed, plain = self.directory / "packed.vsnap", self.directory / "plain.vsnap"
        self.snapshot("compress", self.file, "--output", packed)
        self.snapshot("decompress", packed, "--output", plain)
        for file, compressed in ((packed, True), (plain, False)):
            self.snapshot("verify", file)
            after = self.info(file)
            self.assertEqual(after.pop("compressed"), compressed)
            stored = after.pop("stored_bytes")
            self.assertEqual(after, {name: value for name, value in before.items() if name in after})
            self.assertTrue(self.memory(file) == memory, file)
            self.goes_on(file)
            if compressed:
                self.assertLess(stored, before["data_bytes"])
                self.assertIn(f"data (compressed to {stored}), ", run("snapshot", "info", file).output)
        # Most of what the guest holds is random; but the rest, and room that is not needed, goes.
        self.assertLess(packed.stat().st_size, self.file.stat().st_size)

    def test_in_its_own_place(self):
        self.saved()
        other = self.directory / "other.vsnap"
        shutil.copy(self.file, other)
        os.chmod(other, 0o640)
        memory = self.memory(self.file)
        # A VM that has it mapped keeps what it has.
        self.begin("restore", self.file)
        self.snapshot("compress", self.file, other)
        self.check()
        self.quit()
        for file, mode in ((self.file, 0o600), (other, 0o640)):
            self.assertTrue(self.info(file)["compressed"])
            self.assertEqual(file.stat().st_mode & 0o777, mode)
        self.snapshot("compress", self.file)  # once more is the same
        self.assertEqual(self.file.read_bytes(), other.read_bytes())
        self.snapshot("decompress", self.file, other)
        self.assertFalse(self.info(self.file)["compressed"])
        self.assertTrue(self.memory(self.file) == memory)
        self.assertEqual(sorted(os.listdir(self.directory)), ["memory.raw", "other.vsnap", "vm.vsnap"])

    def test_diffs_are_folded_whichever_is_compressed(self):
        config = self.directory / "vm.toml"
        config.write_text("[machine]\ntrack_dirty = true\n", encoding="ascii")
        self.start(f"{LONG} memory=8", config)
        files = []
        for number in range(3):
            self.check()
            files.append(self.directory / f"{number}.vsnap")
            self.control("pause")
            self.control("snapshot", files[-1], *(["--diff"] if number else []))
            whole = self.directory / "whole.vsnap"
            if number == 2:
                self.control("snapshot", whole)
            self.control("resume")
        self.quit()
        merged = self.directory / "merged.vsnap"
        memory = self.memory(whole)
        for packed in ([0], [1, 2], [0, 1, 2]):
            for number in packed:
                self.snapshot("compress", files[number])
            self.snapshot("merge", *files, "--output", merged)
            self.assertFalse(self.info(merged)["compressed"])
            self.assertTrue(self.memory(merged) == memory, packed)
        self.goes_on(merged, checks=3)
        ended = run("restore", files[1])
        self.assertEqual(ended.status, DAMAGED, ended)
        self.assertIn("vireo snapshot merge", ended.errors)

    def test_damage_is_found_and_named(self):
        self.saved()
        self.snapshot("compress", self.file)
        whole = self.file.read_bytes()
        begin = int.from_bytes(whole[0xb0:0xb8], "little")
        table = int.from_bytes(whole[0x98:0xa0], "little")
        for place, text in ((begin, r"frame 0 at \d+: is damaged"), (len(whole) - 1, r"frame \d+ at \d+: is damaged"),
                            (table, "frame table: is damaged"), (0x98, "header: is damaged")):
            content = bytearray(whole)
            content[place] ^= 0x10
            self.file.write_bytes(content)
            for words in (("snapshot", "verify"), ("snapshot", "decompress"), ("restore",)):
                ended = run(*words, self.file)
                self.assertEqual(ended.status, DAMAGED, (words, place, ended))
                self.assertRegex(ended.errors, f"{re.escape(str(self.file))}: {text}")
                said = [line for line in ended.errors.splitlines() if "userfaultfd: " not in line]
                self.assertEqual(len(said), 1, ended.errors)
            self.assertEqual(self.file.read_bytes(), content, "as it was")
        self.file.write_bytes(whole[:-1])
        ended = run("restore", self.file)
        self.assertEqual(ended.status, DAMAGED, ended)
        self.assertIn("truncated", ended.errors)

    def test_what_cannot_be_is_refused(self):
        self.saved()
        self.snapshot("compress", self.file)
        none = self.directory / "none.vsnap"
        for words, status, text in (
                (("snapshot", "shrink", self.file), USAGE, "wants info, verify, merge, compress, decompress, split or seal"),
                (("snapshot", "compress", self.file, self.file, "--output", none), USAGE, "goes with one file"),
                (("snapshot", "verify", self.file, "--output", none), USAGE, "only snapshot merge, compress"),
                (("snapshot", "compress", none), MISSING, str(none)),
                (("snapshot", "compress", self.directory / "none" / "x", "--output", none), MISSING, "none/x"),
                (("restore", self.file, "--memory", "map"), USAGE, "this one is compressed")):
            with self.subTest(words):
                ended = run(*words)
                self.assertEqual(ended.status, status, ended)
                self.assertIn(text, ended.errors)
        self.assertFalse(none.exists())


if __name__ == "__main__":
    unittest.main()
