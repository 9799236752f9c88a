#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose memory is in a raw file beside them: made, looked at, moved, merged, restored, damaged."""
import os
import pathlib
import re
import shutil
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_compressed_test import LONG, Snapshots  # noqa: E402
import vsnap_damage  # noqa: E402
from vireo_process import TIMEOUT, run  # noqa: E402

DAMAGED, MISSING, HOST_FAILED, CONFIG, REFUSED = 65, 66, 71, 78, 1
PAGE = 4096


class Split(Snapshots):
    def setUp(self):
        super().setUp()
        self.raw = pathlib.Path(f"{self.file}.mem")

    def refused(self, status, text, *words):
        ended = run(*words)
        self.assertEqual((ended.status, ended.errors.count("\n")), (status, 1), ended)
        self.assertRegex(ended.errors, text)

    def test_it_is_the_same_snapshot(self):
        self.saved("--rng")
        memory, before = self.memory(self.file), self.info(self.file)
        joined = self.directory / "joined.vsnap"
        os.chmod(self.file, 0o640)
        self.snapshot("split", self.file)
        self.assertEqual([os.stat(file).st_mode & 0o777 for file in (self.file, self.raw)], [0o640, 0o640])
        self.assertTrue(self.raw.read_bytes() == memory, "page n is at n")
        self.assertLess(self.raw.stat().st_blocks * 512, before["data_bytes"] + before["memory_bytes"] // 4)
        self.assertTrue(self.memory(self.file) == memory)
        self.snapshot("verify", self.file)
        after = self.info(self.file)
        self.assertEqual(after["memory_file"], str(self.raw))
        self.assertIn(f"its file   {self.raw}\n", run("snapshot", "info", self.file).output)
        for key in ("uuid", "kind", "created", "data_bytes", "zero_bytes"):
            self.assertEqual(after[key], before[key], key)
        for way in ("map", "copy", "fill"):
            self.goes_on(self.file, "--memory", way)
        self.goes_on(self.file, "--prefault")
        self.assertTrue(self.raw.read_bytes() == memory, "a guest writes to its own")
        self.snapshot("decompress", self.file, "--output", joined)
        self.assertTrue(self.memory(joined) == memory)
        self.assertIsNone(self.info(joined)["memory_file"])
        self.assertEqual([section["tag"] for section in self.info(joined)["sections"]],
                         [section["tag"] for section in before["sections"]])
        self.goes_on(joined)

    def test_the_two_move_together(self):
        self.saved()
        self.snapshot("split", self.file)
        elsewhere = self.directory / "elsewhere"
        elsewhere.mkdir()
        for file in (self.file, self.raw):
            file.rename(elsewhere / file.name)
        moved = elsewhere / self.file.name
        self.goes_on(moved)
        (elsewhere / self.raw.name).rename(self.raw)
        self.refused(MISSING, f"{moved}: {moved}.mem: No such file", "restore", moved)
        self.refused(MISSING, f"{moved}: {moved}.mem: No such file", "snapshot", "verify", moved)

    def test_diffs_to_it(self):
        config = self.directory / "vm.toml"
        config.write_text("[machine]\ntrack_dirty = true\n", encoding="ascii")
        self.start(f"{LONG} memory=8", config)
        self.check()
        diff, merged = self.directory / "diff.vsnap", self.directory / "merged.vsnap"
        self.control("snapshot", self.file)
        self.check()
        self.control("snapshot", diff, "--diff", "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        self.snapshot("split", self.file)
        self.snapshot("split", diff)
        self.snapshot("merge", self.file, diff, "--output", merged)
        self.assertIsNone(self.info(merged)["memory_file"])
        self.goes_on(merged, checks=2)
        # One that was restored from it knows what it has changed since.
        self.begin("restore", self.file)
        self.checks = 1
        self.check()
        self.control("snapshot", diff, "--diff", "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        self.snapshot("merge", self.file, diff, "--output", merged)
        self.goes_on(merged, checks=2)

    def test_what_is_there_is_kept(self):
        self.saved()
        self.raw.write_bytes(b"somebody's")
        before = self.file.read_bytes()
        self.refused(CONFIG, f"{self.raw}: is there already", "snapshot", "split", self.file)
        self.assertEqual((self.file.read_bytes() == before, self.raw.read_bytes()), (True, b"somebody's"))
        self.assertEqual(len(os.listdir(self.directory)), 2)

    def test_damage_is_found_and_named(self):
        self.saved()
        self.snapshot("split", self.file)
        whole = self.raw.read_bytes()
        page = next(at for at in range(0, len(whole), PAGE) if any(whole[at:at + PAGE]))
        with open(self.raw, "r+b") as raw:
            raw.seek(page + 5)
            raw.write(bytes([whole[page + 5] ^ 4]))
        for words in (("snapshot", "verify"), ("snapshot", "decompress"), ("restore", "--memory", "copy")):
            self.refused(DAMAGED, f"{re.escape(str(self.file))}.*the page at {page}: is damaged", *words, self.file)
        os.truncate(self.raw, len(whole) - PAGE)
        for words in (("snapshot", "info"), ("snapshot", "verify"), ("restore",)):
            self.refused(DAMAGED, f"{self.file}: its memory's file {self.raw} has {len(whole) - PAGE} bytes of "
                         f"{len(whole)}", *words, self.file)

    def test_what_is_beside_it_alone(self):
        self.saved()
        self.snapshot("split", self.file)
        whole = self.directory / "whole.vsnap"
        (self.directory / "other").mkdir()
        shutil.copy(self.file, whole)
        shutil.copy(self.raw, self.directory / "other")
        for name in (f"other/{self.raw.name}", "", "..", "vm\0.mem", str(self.raw)):
            damaged = vsnap_damage.File(whole)
            damaged.section(b"memory-file")[:] = len(name).to_bytes(4, "little") + name.encode()
            self.file.write_bytes(damaged.bytes())
            self.refused(DAMAGED, "memory-file 0: is no name|: not a regular file", "restore", self.file)

    def test_a_file_that_is_cut_off_ends_it_with_its_name(self):
        self.saved(words=f"{LONG} memory=24")
        self.snapshot("split", self.file)
        self.begin("restore", self.file)
        self.checks = 1
        self.check()
        os.truncate(self.raw, PAGE)
        _, errors = self.process.communicate(b"cc", timeout=TIMEOUT)
        self.assertEqual(self.process.returncode, HOST_FAILED, errors)
        self.assertIn(f"{self.raw}: guest memory could not be read", errors.decode())

    def test_a_vm_that_stands_by(self):
        """It has its own opened ahead; another's it cannot open."""
        self.saved()
        self.snapshot("split", self.file)
        other = self.directory / "other.vsnap"
        self.snapshot("decompress", self.file, "--output", other)
        self.snapshot("split", other)
        self.begin("restore", self.file, "--standby")
        self.assertEqual(run("ctl", self.socket, "status").status, 0)
        self.refused(REFUSED, f"{other}: has its memory in a file of its own.*decompress", "ctl", self.socket, "load",
                     other)
        self.control("load")
        self.checks = 1
        self.check()
        self.quit()


if __name__ == "__main__":
    unittest.main()
