# SPDX-License-Identifier: Apache-2.0
"""The probe's test "hold": a guest that knows what it holds, and says whether it still does."""
import pathlib
import re
import tempfile
import time
import unittest

from vireo_process import PROBE, reap, run, start

ALWAYS = ("sse", "x87", "mxcsr", "fs", "debug", "msrs", "memory")
BY_PROCESSOR = ("avx", "avx512", "xcr0", "pkru")


class HoldTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.socket = self.directory / "vm.sock"

    def start(self, words, *options):
        """A guest that holds something, from its beginning."""
        self.begin("run", "--kernel", PROBE, "--memory", "64M", "--cmdline",
                   f"probe=hold {words} end=poweroff", *options)
        self.lines_to("probe: hold=ready")
        self.checks = 0

    def begin(self, *arguments, **others):
        self.process = start(*arguments, "--control", self.socket, **others)
        self.addCleanup(reap, self.process)
        while not self.socket.exists() and self.process.poll() is None:
            time.sleep(0.01)

    def lines_to(self, pattern):
        """What the guest says up to a line that matches."""
        lines = [""]
        while not re.fullmatch(pattern, lines[-1]):
            line = self.process.stdout.readline().decode()
            self.assertTrue(line, (lines, self.process.poll()))
            lines.append(line.strip())
        return lines[1:]

    def check(self):
        """{name: text} of the lines "probe: hold_name=text"; what can be wrong is right."""
        self.process.stdin.write(b"c")
        self.process.stdin.flush()
        self.checks += 1
        return self.checked(self.lines_to(f"probe: hold={self.checks}"))

    def checked(self, lines):
        found = dict(line.removeprefix("probe: hold_").split("=") for line in lines[:-1])
        for name in ALWAYS:
            self.assertEqual(found[name], "ok", lines)
        for name in BY_PROCESSOR:
            self.assertIn(found[name], ("ok", "none"), lines)
        self.assertEqual(found["memory_wrong"], "0", lines)
        return found

    def control(self, *words):
        done = run("ctl", self.socket, *words)
        self.assertEqual(done.status, 0, done)
        return done

    def reboot(self):
        """The guest, which was told to reboot at its end, begins anew."""
        self.process.stdin.write(b"q")
        self.process.stdin.flush()
        self.lines_to("probe: hold=ready")
        self.checks = 0

    def quit(self):
        output, errors = self.process.communicate(b"q", timeout=30)
        self.assertEqual((self.process.returncode, output), (0, b""), errors)
