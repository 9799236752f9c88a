#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/demo with and without a terminal, on the build and the kernels that are there."""
import fcntl
import os
import pathlib
import pty
import re
import select
import subprocess
import tempfile
import termios
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARTIFACTS = pathlib.Path(os.environ.get("VIREO_ARTIFACTS", ROOT / "artifacts"))
STEPS = ["process_start", "config_parsed", "kvm_ready", "memory_ready", "kernel_loaded", "first_entry",
         "init begins", "init done", "end"]


class Demo(unittest.TestCase):
    def setUp(self):
        # A guest image of its own: those of other tests must not change under them.
        directory = tempfile.TemporaryDirectory(dir=ARTIFACTS, prefix=".demo-")
        self.addCleanup(directory.cleanup)
        for flavour in ("cloud", "generic"):
            os.symlink(ARTIFACTS / flavour, pathlib.Path(directory.name) / flavour)
        self.env = dict(os.environ, VIREO_ARTIFACTS=directory.name)

    def check_chart(self, text):
        chart = text.partition("boot timeline")[2]
        found = re.findall(r"^  (\S.*\S) +([\d.]+) ms(?:  +([█#]+|[▏|]))?", chart, re.MULTILINE)
        names = [name.strip() for name, _, _ in found]
        self.assertEqual([name for name in names if name in STEPS], STEPS, text)
        times = [float(time) for _, time, _ in found]
        self.assertEqual(times, sorted(times))
        # The guest's own part is the longest.
        self.assertEqual(max(found, key=lambda step: len(step[2]))[0].strip(), "init begins")

    def test_without_a_terminal_it_is_a_tour(self):
        done = subprocess.run([ROOT / "tools/demo"], env=self.env, stdin=subprocess.DEVNULL, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
        text = done.stdout.decode()
        self.assertEqual(done.returncode, 0, text)
        self.assertIn("a Linux guest under vireo", text)
        self.check_chart(text)
        if not any(pathlib.Path(f"/sys/module/{name}").exists() for name in ("kvm_intel", "kvm_amd")):
            self.assertIn("runs in the emulated test host", text)

    def test_on_a_terminal_it_is_a_shell(self):
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        process = subprocess.Popen(
            [ROOT / "tools/demo"], env=self.env, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.addCleanup(process.kill)
        text = self.read_until(master, b"guest# ")
        os.write(master, b"echo $((6 * 7)) from the guest; reboot -f\r")
        text += self.read_until(master, None)
        self.assertEqual(process.wait(60), 10, text)  # the guest's reboot
        self.assertIn("\n42 from the guest", text)
        self.check_chart(text.replace("\r", ""))

    def read_until(self, master, words):
        """What comes until `words`, or until the end for None."""
        text = b""
        while words is None or words not in text:
            self.assertTrue(select.select([master], [], [], 300)[0], text)
            try:
                text += os.read(master, 65536)
            except OSError:  # the last user of the terminal has gone
                self.assertIsNone(words, text)
                break
        return text.decode(errors="replace")


if __name__ == "__main__":
    unittest.main()
