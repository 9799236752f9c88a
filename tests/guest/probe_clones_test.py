#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A hundred guests at once from one snapshot: all are well, and each costs little beside what it writes."""
import pathlib
import re
import signal
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_hold import HoldTest  # noqa: E402
from vireo_process import TIMEOUT, is_sanitized, reap, start  # noqa: E402

# A program with sanitizers has memory of its own without end.
CLONES = 10 if is_sanitized() else 100
PRIVATE_MAX = 2 << 20
WRITTEN = 8 << 20  # by each of the guests


def private_memory(pid):
    """Bytes that no other process shares: what it wrote, of its guest's memory and its own."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return sum(int(kib) << 10 for kib in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", text, re.M))


class ClonesTest(HoldTest):
    def test_a_hundred_at_once(self):
        file = self.directory / "vm.vsnap"
        self.start("60000 memory=8", "--rng")
        self.check()
        self.control("snapshot", file, "--then", "stop")
        self.process.communicate()
        clones = []
        for number in range(CLONES):
            clones.append(start("restore", file, "--control", self.directory / f"{number}.sock"))
            self.addCleanup(reap, clones[-1])
        # The guests never sleep. All of them are asked before one is listened to, and stand still to be
        # looked at: else each would wait for the others' turns.
        for clone in clones:
            clone.stdin.write(b"c")
            clone.stdin.flush()
        for self.process in clones:
            self.checked(self.lines_to("probe: hold=2"))
        for clone in clones:
            clone.send_signal(signal.SIGSTOP)
        costs = [private_memory(clone.pid) for clone in clones]
        for clone in clones:
            clone.stdin.write(b"q")
            clone.stdin.flush()
            clone.send_signal(signal.SIGCONT)
        for clone in clones:
            output, errors = clone.communicate(timeout=TIMEOUT)
            self.assertEqual((clone.returncode, output), (0, b""), errors)
        self.assertGreaterEqual(min(costs), WRITTEN, costs)
        if not is_sanitized():
            self.assertLessEqual(max(costs), WRITTEN + PRIVATE_MAX, costs)


if __name__ == "__main__":
    unittest.main()
