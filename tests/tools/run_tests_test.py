#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program that runs the tests counts what happened, and a hang costs only the test that hangs."""
import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/lib"))
from suites import Runner, Suite, cases_of, count  # noqa: E402

UNITTEST = """
import sys, unittest
class A(unittest.TestCase):
    def test_passes(self): pass
    def test_fails_twice(self):
        for number in range(2):
            with self.subTest(number): self.fail()
    def test_errs(self): raise ValueError
    @unittest.skip("reason")
    def test_skips(self): pass
class B(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError
    def test_never_runs(self): pass
if __name__ == "__main__": unittest.main()
"""


class Counting(unittest.TestCase):
    def test_what_catch_says(self):
        passed = "=====\nAll tests passed (31 assertions in 7 test cases)\n\n"
        one = "All tests passed (1 assertion in 1 test case)\n"
        mixed = "test cases:  7 |  5 passed |  2 failed\nassertions: 31 | 29 passed | 2 failed\n"
        none = "test cases: 2 | 2 failed\nassertions: 2 | 2 failed\n"
        for status, output, expected in ((0, passed, (7, 0, 0)), (0, one, (1, 0, 0)),
                                         (2, mixed, (5, 2, 0)), (2, none, (0, 2, 0)),
                                         # a leak found at exit
                                         (1, passed, (7, 1, 0)), (0, "No tests ran\n", (0, 1, 0)),
                                         (134, "==1==ERROR: AddressSanitizer\n", (0, 1, 0))):
            with self.subTest(output, status=status):
                self.assertEqual(count(status, output), expected)

    def test_what_plain_programs_say(self):
        for status, tests, expected in ((0, 0, (1, 0, 0)), (1, 0, (0, 1, 0)), (77, 0, (0, 0, 1)),
                                        (139, 0, (0, 1, 0)), (77, 9, (0, 0, 9)), (1, 9, (0, 9, 0)),
                                        (0, 9, (0, 9, 0)), (124, 1, (0, 1, 0))):
            self.assertEqual(count(status, "words\n", tests), expected)

    def test_what_unittest_says(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "some_test.py"
            path.write_text(UNITTEST, encoding="ascii")
            for case, status, tests, expected in (
                    (["A.test_passes"], 0, 1, (1, 0, 0)), (["A.test_fails_twice"], 1, 1, (0, 1, 0)),
                    (["A.test_skips"], 0, 1, (0, 0, 1)), (["A"], 1, 4, (1, 2, 1)),
                    (["B"], 1, 1, (0, 1, 0)), ([], 1, 5, (1, 3, 1)), (["-k", "nothing"], 0, 0, (0, 1, 0))):
                done = subprocess.run([sys.executable, path, *case], stdout=subprocess.PIPE, check=False,
                                      stderr=subprocess.STDOUT)
                with self.subTest(case):
                    self.assertEqual(done.returncode, status)
                    self.assertEqual(count(status, done.stdout.decode(), tests), expected)
            self.assertEqual(cases_of(path, None), ["A.test_errs", "A.test_fails_twice", "A.test_passes",
                                                    "A.test_skips", "B.test_never_runs"])

    def test_tests_that_were_not_run_are_not_passed(self):
        self.assertEqual(count(0, "Ran 3 tests in 1s\n\nOK\n"), (3, 0, 0))
        self.assertEqual(count(0, "Ran 3 tests in 1s\n\nOK\n", tests=5), (3, 2, 0))
        self.assertEqual(count(0, "Ran 3 tests in 1s\n\nOK\n", tests=2), (3, 1, 0))


class Running(unittest.TestCase):
    @staticmethod
    def outcome(suites, lanes=1):
        """(exit status, all lines)"""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runner = Runner(lanes=lanes, host="selftest-run")
            runner.run(suites)
            status = runner.finish()
        return status, printed.getvalue().splitlines()

    def test_exit_status_and_last_line(self):
        good, bad, skips = Suite("good", ["true"]), Suite("bad", ["false"]), Suite("s", ["sh", "-c", "exit 77"])
        for suites, status, last in (([good], 0, "1 passed, 0 failed, 0 skipped"),
                                     ([good, bad], 1, "1 passed, 1 failed, 0 skipped"),
                                     ([good, skips], 1, "1 passed, 0 failed, 1 skipped"),
                                     ([skips], 1, "0 passed, 0 failed, 1 skipped"),
                                     ([], 1, "0 passed, 0 failed, 0 skipped"),
                                     ([Suite("none", ["/no/such"])], 1, "0 passed, 1 failed, 0 skipped")):
            for lanes in (1, 2):
                ended, lines = self.outcome(suites, lanes)
                self.assertEqual((ended, lines[-1]), (status, last))

    def test_a_suite_that_hangs_here_is_ended_with_what_it_started(self):
        suite = Suite("hangs", ["sh", "-c", "echo begun; sleep 4711 & sleep 4711"], timeout=1)
        status, lines = self.outcome([suite, Suite("next", ["true"])])
        self.assertEqual((status, lines[-1]), (1, "1 passed, 1 failed, 0 skipped"))
        self.assertIn("    begun", lines)
        self.assertIn("    not over within 1 s", lines)
        self.assertEqual(subprocess.run(["pgrep", "-f", "[s]leep 4711"], check=False).returncode, 1)

    def test_a_suite_that_hangs_in_a_host_leaves_the_next_a_fresh_one(self):
        started = "sh", "-c", "mkdir /tmp/here && exec sleep 1000"
        status, lines = self.outcome([Suite("hangs", started, in_host=True, timeout=3),
                                      Suite("next", ["mkdir", "/tmp/here"], in_host=True)])
        self.assertEqual((status, lines[-1]), (1, "1 passed, 1 failed, 0 skipped"))
        self.assertTrue(any("serial.log ends" in line for line in lines), lines)
        self.assertTrue(any("not over in time" in line for line in lines), lines)

    def test_a_suite_whose_host_fails_gets_another_once(self):
        share = pathlib.Path(subprocess.run(
            [ROOT / "tools/test-host", "share", "--name", "selftest-run-1"], check=True,
            stdout=subprocess.PIPE).stdout.decode().strip())
        (share / "ended").unlink(missing_ok=True)
        script = "[ -e /mnt/share/ended ] || { touch /mnt/share/ended; echo o > /proc/sysrq-trigger; sleep 100; }"
        status, lines = self.outcome([Suite("a", ["sh", "-c", script], in_host=True)])
        self.assertEqual((status, lines[-1]), (0, "1 passed, 0 failed, 0 skipped"))
        self.assertEqual(lines[0], "a: its test host failed; once more in a fresh one")

    def test_two_lanes_have_a_host_each(self):
        meet = Suite("a", ["sh", "-c", "sleep 3; echo ok"])
        began = os.times().elapsed
        self.assertEqual(self.outcome([meet, meet], lanes=2)[0], 0)
        self.assertLess(os.times().elapsed - began, 6)
        self.assertEqual(Runner(lanes=2, host="x").hosts, ["x-1", "x-2"])

    def test_the_program_fails_where_a_suite_is_skipped(self):
        with tempfile.TemporaryDirectory() as directory:
            meson = pathlib.Path(directory) / "meson"
            meson.write_text(textwrap.dedent("""\
                #!/bin/sh
                echo '[{"name": "main path 1", "cmd": ["sh", "-c", "exit '$STATUS'"], "suite": ["unit"], "env": {}},
                       {"name": "main path 2", "cmd": ["true"], "suite": ["unit"], "env": {}}]'
                """), encoding="ascii")
            meson.chmod(0o755)
            for status, expected, last in ((77, 1, "1 passed, 0 failed, 1 skipped"),
                                           (0, 0, "2 passed, 0 failed, 0 skipped")):
                env = dict(os.environ, PATH=f"{directory}:{os.environ['PATH']}", STATUS=str(status))
                done = subprocess.run(
                    [ROOT / "tools/run-tests", "--build", directory, "--release", directory,
                     "--artifacts", os.environ.get("VIREO_ARTIFACTS", ROOT / "artifacts"), "main path"],
                    env=env, stdout=subprocess.PIPE, check=False)
                self.assertEqual(done.returncode, expected)
                self.assertEqual(done.stdout.decode().splitlines()[-1], last)


if __name__ == "__main__":
    unittest.main()
