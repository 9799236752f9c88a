#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which pages of its snapshot a guest touches, recorded by one VM and brought before the next goes on."""
import pathlib
import re
import shutil
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_hold import HoldTest  # noqa: E402
from vireo_process import TIMEOUT, run  # noqa: E402

USAGE, DAMAGED, MISSING = 64, 65, 66
HELD = 24 << 20  # what the guest has in its memory, and looks at in each check


class WorkingSet(HoldTest):
    def setUp(self):
        super().setUp()
        self.file = self.directory / "vm.vsnap"
        self.set = self.directory / "vm.vsnap.ws"

    def saved(self, *options, words="60000 memory=24"):
        self.start(words, *options)
        self.check()
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)

    def mapped(self):
        """Bytes of files that the process has mapped and there."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) << 10

    def restore(self, *options):
        """How much of the file is there as soon as the guest stands."""
        self.begin("restore", self.file, *options)
        self.checks = 1
        self.control("pause")
        mapped = self.mapped()
        self.control("resume")
        return mapped

    def test_what_one_has_touched_is_there_in_the_next(self):
        self.saved("--rng")
        without = self.restore("--working-set", "record")
        self.assertFalse(self.set.exists())
        self.check()
        self.quit()
        self.assertTrue(self.set.exists())
        self.assertGreater(self.restore("--working-set", "use"), without + HELD // 2)
        self.check()
        self.quit()
        # One that touches little has little there, which is recorded in the other's place.
        self.restore("--working-set", "record")
        self.quit()
        little = self.restore("--working-set", "use")
        self.check()
        self.quit()
        self.assertLess(little, without + HELD // 2)

    def refused(self, status, text, *options):
        ended = run("restore", self.file, "--working-set", "use", *options)
        self.assertEqual(ended.status, status, ended)
        self.assertIn(text, ended.errors)
        self.assertEqual(ended.errors.count("\n"), 1, ended.errors)

    def test_what_does_not_fit_is_refused(self):
        self.saved()
        self.refused(MISSING, str(self.set))
        self.restore("--working-set", "record")
        self.quit()
        content = self.set.read_bytes()
        for damaged in (content[:-1], b"", content[:40] + bytes(16) + content[56:], content + bytes(1 << 20)):
            self.set.write_bytes(damaged)
            self.refused(DAMAGED, f"{self.set}: working set: ")
        self.set.write_bytes(content)
        self.refused(USAGE, "--memory map", "--memory", "copy")
        self.refused(USAGE, "--standby", "--standby", "--control", self.socket)
        other = self.directory / "other.ws"
        shutil.move(self.set, other)
        self.saved()
        shutil.move(other, self.set)
        self.refused(DAMAGED, "of another snapshot")

    def test_a_guest_that_starts_anew_has_touched_all(self):
        config = self.directory / "vm.toml"
        config.write_text('[machine]\non_reboot = "restart"\n', encoding="ascii")
        self.saved(config, words="60000 memory=24 probe=reboot")
        self.restore("--working-set", "record")
        self.process.stdin.write(b"q")
        self.process.stdin.flush()
        self.lines_to("probe: hold=ready")
        self.control("kill")
        _, errors = self.process.communicate(timeout=TIMEOUT)
        self.assertIn("nothing is recorded", errors.decode())
        self.assertFalse(self.set.exists())


if __name__ == "__main__":
    unittest.main()
