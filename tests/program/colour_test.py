#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Colour in messages: on a terminal that has colours, and nowhere else."""
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import PROBE, run, said_on_terminal  # noqa: E402

RED, YELLOW, PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"
# The supervisor's socket is not there, which is a warning.
WARNS = ("run", "--kernel", PROBE, "--cmdline", "probe=hello end=poweroff")


class Colour(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def environment(self, changes):
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        return {**kept, "NOTIFY_SOCKET": str(self.directory / "none"), **changes}

    def said(self, *words, **environment):
        return said_on_terminal(*words, env=self.environment(environment))

    def test_errors_of_commands(self):
        for words in (("run", "--kernel", "/nonexistent"), ("fly",), ("ctl", "/nonexistent", "status")):
            with self.subTest(words):
                said = self.said(*words, TERM="xterm")
                self.assertTrue(said.startswith(f"{RED}vireo:{PLAIN} "), said)
                self.assertEqual(said.count("\x1b"), 2)
                self.assertEqual(len(said.splitlines()), 1)

    def test_lines_of_the_log(self):
        config = self.directory / "vm.toml"
        config.write_text('[ready]\nwhen = "serial:never"\ntimeout = "100ms"\n', encoding="ascii")
        said = self.said("run", config, "--kernel", PROBE, "--cmdline", "probe=echo", "--log-level", "debug",
                         TERM="xterm")
        self.assertIn(f"Z {YELLOW}warning{PLAIN} supervisor: ", said)
        self.assertIn(f"Z {RED}error{PLAIN} machine: not ready", said)
        for line in said.splitlines():
            self.assertEqual("\x1b" in line, " info " not in line and " debug " not in line, line)

    def test_where_there_is_none(self):
        for environment in ({}, {"TERM": ""}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}):
            with self.subTest(environment):
                self.assertTrue(self.said("fly", **environment).startswith("vireo: "))
                warned = self.said(*WARNS, **environment)
                self.assertIn(" warning supervisor: ", warned)
                self.assertNotIn("\x1b", warned)
        self.assertIn(RED, self.said("fly", TERM="xterm", NO_COLOR=""))
        for words in (("fly",), WARNS):  # to a pipe
            errors = run(*words, env=self.environment({"TERM": "xterm"})).errors
            self.assertTrue(errors)
            self.assertNotIn("\x1b", errors)

    def test_not_in_a_file_and_not_in_json(self):
        log = self.directory / "log"
        self.assertEqual(self.said(*WARNS, "--log-file", log, TERM="xterm"), "")
        self.assertIn(" warning supervisor: ", log.read_text(encoding="ascii"))
        self.assertNotIn("\x1b", log.read_text(encoding="ascii"))
        said = self.said(*WARNS, "--log-format", "json", TERM="xterm")
        self.assertIn('"level":"warning"', said)
        self.assertNotIn("\\u001b", said)
        self.assertNotIn("\x1b", said)


if __name__ == "__main__":
    unittest.main()
