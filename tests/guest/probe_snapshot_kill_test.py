#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who saves, merges or compresses over a snapshot is killed: its name has the one from before or the new one, whole.

VIREO_SNAPSHOT_KILLS says how often, VIREO_KILL_SEED when.
"""
import json
import os
import pathlib
import random
import signal
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_hold import HoldTest  # noqa: E402
from vireo_process import TIMEOUT, is_sanitized, reap, run, start  # noqa: E402

KILLS = int(os.environ.get("VIREO_SNAPSHOT_KILLS", "16" if is_sanitized() else "40"))
SEED = int(os.environ.get("VIREO_KILL_SEED", random.randrange(1 << 32)))
LONG = "60000"  # a timer of that many ms does not come
VM_GONE = 69


class Killed(HoldTest):
    def setUp(self):
        super().setUp()
        self.file = self.directory / "vm.vsnap"
        self.chance = random.Random(SEED)
        self.present = []

    def uuid(self, file):
        shown = run("snapshot", "info", file, "--json")
        self.assertEqual(shown.status, 0, shown)
        return json.loads(shown.output)["uuid"]

    def kill(self, begun, lasts, victims):
        """Some time after `begun`, which lasts so long where nobody is killed."""
        time.sleep(max(0, begun + self.chance.uniform(0, 1.2) * lasts - time.monotonic()))
        for victim in victims:
            victim.kill()

    def look(self):
        """The snapshot is whole; what else was made has no name, but between a call and the next: that
        one goes when the file is replaced once more."""
        verified = run("snapshot", "verify", self.file)
        self.assertEqual(verified.status, 0, verified)
        self.socket.unlink(missing_ok=True)
        left = sorted(set(os.listdir(self.directory)) - set(self.present))
        self.assertIn(left, ([], [f".{self.file.name}.vireo"]))

    def test_saving(self):
        self.start(f"{LONG} memory=8")
        self.check()
        begun = time.monotonic()
        self.control("snapshot", self.file)
        lasts = time.monotonic() - begun
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate()
        self.present = os.listdir(self.directory)
        saved = self.checks
        for number in range(KILLS // 2):
            with self.subTest(VIREO_KILL_SEED=SEED, number=number):
                self.begin("restore", self.file)
                vm, self.checks = self.process, saved
                self.check()
                then = self.chance.choice(("resume", "resume", "stop"))
                begun = time.monotonic()
                ctl = start("ctl", self.socket, "snapshot", self.file, "--then", then)
                victims = self.chance.choice(([vm], [ctl], [vm, ctl], [ctl, vm]))
                try:
                    self.kill(begun, lasts, victims)
                    if victims == [ctl] and then == "resume":
                        self.check()  # it goes on
                    elif victims == [ctl]:
                        # It may stand still for what ctl would have said next, or be over.
                        self.assertIn(run("ctl", self.socket, "status").status, (0, VM_GONE))
                    vm.kill()
                    _, errors = ctl.communicate(timeout=TIMEOUT)
                finally:
                    reap(ctl)
                    reap(vm)
                self.assertIn(ctl.returncode, (0, VM_GONE, -signal.SIGKILL), errors)
                self.look()
                # Which of the two it is the guest tells by how often it was asked.
                self.begin("restore", self.file)
                self.process.stdin.write(b"c")
                self.process.stdin.flush()
                lines = self.lines_to(r"probe: hold=\d+")
                self.checked(lines)
                found = int(lines[-1].partition("=")[2]) - 1
                self.assertIn(found, (saved, saved + 1))
                if ctl.returncode == 0:
                    self.assertEqual(found, saved + 1)
                reap(self.process)
                self.socket.unlink(missing_ok=True)
                saved = found

    def test_merging(self):
        config = self.directory / "vm.toml"
        config.write_text("[machine]\ntrack_dirty = true\n", encoding="ascii")
        self.start(f"{LONG} memory=8", config)
        chain = []
        for number in range(3):
            self.check()
            chain.append(self.directory / f"{number}.vsnap")
            self.control("snapshot", chain[-1], *(["--diff"] if number > 0 else []))
        self.quit()
        checks_of = {self.uuid(file): number + 1 for number, file in enumerate(chain)}

        begun = time.monotonic()
        merged = run("snapshot", "merge", *chain[:2], "--output", self.file)
        self.assertEqual(merged.status, 0, merged)
        lasts = time.monotonic() - begun
        self.present = os.listdir(self.directory)
        for number in range(KILLS // 2):
            with self.subTest(VIREO_KILL_SEED=SEED, number=number):
                before = checks_of[self.uuid(self.file)]
                wanted = 5 - before  # the other one
                begun = time.monotonic()
                process = start("snapshot", "merge", *chain[:wanted], "--output", self.file)
                try:
                    self.kill(begun, lasts, [process])
                    _, errors = process.communicate(timeout=TIMEOUT)
                finally:
                    reap(process)
                self.assertIn(process.returncode, (0, -signal.SIGKILL), errors)
                self.look()
                found = checks_of[self.uuid(self.file)]
                self.assertIn(found, (wanted,) if process.returncode == 0 else (before, wanted))
                self.begin("restore", self.file)
                self.checks = found
                self.check()
                reap(self.process)
                self.socket.unlink(missing_ok=True)

    def test_compressing(self):
        self.start(f"{LONG} memory=8")
        self.check()
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate()
        self.present = os.listdir(self.directory)

        def compressed():
            return json.loads(run("snapshot", "info", self.file, "--json").output)["compressed"]
        lasts = {}
        for verb in ("compress", "decompress"):
            begun = time.monotonic()
            self.assertEqual(run("snapshot", verb, self.file).status, 0)
            lasts[verb] = time.monotonic() - begun
        saved = self.checks
        for number in range(KILLS // 2):
            with self.subTest(VIREO_KILL_SEED=SEED, number=number):
                before = compressed()
                verb = "decompress" if before else "compress"
                begun = time.monotonic()
                process = start("snapshot", verb, self.file)
                try:
                    self.kill(begun, lasts[verb], [process])
                    _, errors = process.communicate(timeout=TIMEOUT)
                finally:
                    reap(process)
                self.assertIn(process.returncode, (0, -signal.SIGKILL), errors)
                self.look()
                self.assertIn(compressed(), (not before,) if process.returncode == 0 else (before, not before))
                self.begin("restore", self.file)
                self.checks = saved
                self.check()
                reap(self.process)
                self.socket.unlink(missing_ok=True)


if __name__ == "__main__":
    unittest.main()
