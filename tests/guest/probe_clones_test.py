#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A hundred guests at once from one snapshot: all are well, and each costs little beside what it writes."""
import pathlib
import re
import signal
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import vsnap  # noqa: E402
from probe_hold import HoldTest  # noqa: E402
from vireo_process import TIMEOUT, is_sanitized, reap, start  # noqa: E402

# A program with sanitizers has memory of its own without end.
CLONES = 10 if is_sanitized() else 100
PRIVATE_MAX = 2 << 20
MEMORY = 64 << 20  # of each guest
WRITTEN = 8 << 20  # by each of them


def mappings(pid):
    """(start, end, name, bytes that are this process's alone) of each."""
    found = []
    text = pathlib.Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8")
    for line in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$|^Private_\w+: +(\d+) kB$", text, re.M):
        start, end, name, private = line.groups()
        if private is None:
            found.append([int(start, 16), int(end, 16), name, 0])
        else:
            found[-1][3] += int(private) << 10
    return found


class ClonesAsRoot(HoldTest):
    """What a process in its sandbox has of memory, only root may look at."""

    @staticmethod
    def first_data(file):
        """How far in the guest's memory the file's first page of data is."""
        place = 0
        snapshot = vsnap.Snapshot(file)
        for kind, count, _ in snapshot.runs:
            if kind == vsnap.DATA:
                break
            place += count * vsnap.PAGE
        snapshot.file.close()
        return place

    def private_memory(self, pid, file, first_data):
        """Bytes that are the process's alone: of its guest's memory, and others."""
        all_mappings = mappings(pid)
        begin = min(start for start, _, name, _ in all_mappings if name == str(file)) - first_data
        guest = sum(private for start, end, _, private in all_mappings if begin <= start and end <= begin + MEMORY)
        return guest, sum(private for *_, private in all_mappings) - guest

    def test_a_hundred_at_once(self):
        file = self.directory / "vm.vsnap"
        self.start("60000 memory=8", "--rng")
        self.check()
        self.control("snapshot", file, "--then", "stop")
        self.process.communicate()
        first_data = self.first_data(file)
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
        costs = [self.private_memory(clone.pid, file, first_data) for clone in clones]
        for clone in clones:
            clone.stdin.write(b"q")
            clone.stdin.flush()
            clone.send_signal(signal.SIGCONT)
        for clone in clones:
            output, errors = clone.communicate(timeout=TIMEOUT)
            self.assertEqual((clone.returncode, output), (0, b""), errors)
        self.assertLessEqual(max(guest for guest, _ in costs), WRITTEN + (512 << 10), costs)
        if not is_sanitized():
            self.assertLessEqual(max(own for _, own in costs), PRIVATE_MAX, costs)


if __name__ == "__main__":
    unittest.main()
