#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A snapshot's name after the power of the machine was cut while vireo saved, merged or stored it in another way: it
has the one from before or the new one, whole, and the new one as soon as the command has said so.

Done as linux_power_cut_test.py does it: the writes to the disk below the file system are logged and
replayed. A second disk, on which no fsync is made although each is said to be, has to lose some, or nothing
was tested. Wants root, on a machine that is ours alone: the test host. The guest is the probe.
"""
import functools
import json
import os
import pathlib
import random
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from block_devices import load_modules, loop_device, mounted  # noqa: E402
from linux_power_cut_test import LoggedDisk  # noqa: E402
from probe_hold import HoldTest  # noqa: E402
from vireo_process import PROBE, TIMEOUT, forbidding, reap, run, start  # noqa: E402
from write_log import Replay  # noqa: E402

LONG = bool(os.environ.get("VIREO_LONG"))
CUTS = 100 if LONG else 15  # of each disk
ROUNDS = 12 if LONG else 4
FSYNC = 74


def setUpModule():
    load_modules("crc32c_generic", "ext4", "dm-delay", "dm-log-writes")


class NoRecords:
    """What LoggedDisk is to have at first: a file that nobody looks at."""

    @staticmethod
    def write_before(path):
        path.write_bytes(b"first")


class PowerCut(HoldTest):
    def disk(self, name):
        return LoggedDisk(self, name, "", False, NoRecords())

    def start_vm(self, config, **options):
        self.process = start("run", config, "--kernel", PROBE, "--memory", "64M", "--cmdline",
                             "probe=touch 4 probe=serial-irq end=poweroff", "--control", self.socket, **options)
        self.addCleanup(reap, self.process)
        self.lines_to("probe: serial_irq=ready")

    def end_vm(self):
        _, errors = self.process.communicate(b"q", timeout=TIMEOUT)
        self.assertEqual(self.process.returncode, 0, errors)

    def config(self):
        file = self.directory / "vm.toml"
        file.write_text("[machine]\ntrack_dirty = true\n", encoding="ascii")
        return file

    def done(self, *words, **options):
        ended = run(*words, **options)
        self.assertEqual(ended.status, 0, ended)
        return ended.output

    def kind(self, file):
        """What it was written as."""
        shown = json.loads(self.done("snapshot", "info", file, "--json"))
        return shown["uuid"], shown["compressed"], shown["memory_file"] is not None

    def save(self, disk, file, **options):
        """The kinds of snapshots, each over the one before; each has a mark behind it."""
        self.start_vm(self.config(), **options)
        kinds = []
        for number in range(ROUNDS):
            self.done("ctl", self.socket, "snapshot", file, **options)
            disk.mark(str(number))
            kinds.append(self.kind(file))
        self.end_vm()
        return kinds

    def merge(self, disk, file, **options):
        """The same of one and the other half of a chain, in turn."""
        self.start_vm(self.config())
        chain = [disk.mount_point / f"{number}.vsnap" for number in range(3)]
        for number, part in enumerate(chain):
            self.control("snapshot", part, *(["--diff"] if number > 0 else []))
        self.end_vm()
        disk.mark("prepared")
        kinds = []
        for number in range(ROUNDS):
            self.done("snapshot", "merge", *chain[:2 + number % 2], "--output", file, **options)
            disk.mark(str(number))
            kinds.append(self.kind(file))
        return kinds

    def store(self, verb, disk, file, **options):
        """The same of one that is stored in another way and back, in its place."""
        self.start_vm(self.config())
        source = disk.mount_point / "source.vsnap"
        self.control("snapshot", source)
        self.end_vm()
        disk.mark("prepared")
        self.done("snapshot", verb, source, "--output", file, **options)
        disk.mark("0")
        kinds = [self.kind(file)]
        for number in range(1, ROUNDS):
            self.done("snapshot", "decompress" if number % 2 else verb, file, **options)
            disk.mark(str(number))
            kinds.append(self.kind(file))
            if number % 2:
                pathlib.Path(f"{file}.mem").unlink(missing_ok=True)
        return kinds

    def wrong_at(self, disk, file, allowed):
        """What is wrong with the file on the disk as it is now; None: nothing."""
        left = {name for name in os.listdir(disk.mount_point) if name.startswith(".") or ".tmp" in name}
        if left - {f".{file.name}.vireo"}:
            return f"left {left}"
        if not file.exists():
            return None if None in allowed else "is gone"
        verified = run("snapshot", "verify", file)
        if verified.status != 0:
            return verified.errors
        return None if (kind := self.kind(file)) in allowed else f"{kind} is not one of {allowed}"

    def cut(self, disk, file, kinds):
        """(where, what is wrong) of each cut where something is."""
        chance = random.Random(disk.name)
        log = disk.read_log()
        self.addCleanup(log.close)
        numbers = {index: int(mark) for index in log.marks() if (mark := log.entries[index].mark).isdigit()}
        begin = max(index for index in log.marks() if log.entries[index].mark in ("begun", "prepared"))
        # Right before any entry, and within flushes.
        places = [(index, None) for index in range(begin + 1, len(log.entries) + 1)]
        places += [(log.first_cached(flush), flush) for flush in log.flushes() if flush > begin]
        cuts = sorted(chance.sample(places, min(CUTS, len(places))), key=lambda place: (place[0], place[1] or 0))
        replay = Replay(log, disk.directory / "first", disk.directory / "replayed")
        self.addCleanup(replay.close)
        wrong = []
        image = disk.directory / "cut"
        with loop_device(image) as device:
            for index, flush in cuts:
                if flush is None:
                    replay.cut_at(index, image)
                else:
                    replay.cut_in_flush(flush, image, chance)
                saved = max((number for mark, number in numbers.items() if mark < index), default=-1)
                allowed = {kinds[saved] if saved >= 0 else None, *kinds[saved + 1:saved + 2]}
                with mounted(device, disk.mount_point):
                    if (found := self.wrong_at(disk, file, allowed)) is not None:
                        wrong.append((index, flush, found))
        return wrong

    def both(self, work):
        for name, options in (("synced", {}), ("unsynced", {"preexec_fn": forbidding(FSYNC, 0)})):
            disk = self.disk(name)
            file = disk.mount_point / "vm.vsnap"
            wrong = self.cut(disk, file, work(disk, file, **options))
            if options:
                self.assertTrue(wrong, "a disk that is never synced must lose something")
            else:
                self.assertEqual(wrong, [])

    def test_saving(self):
        self.both(self.save)

    def test_merging(self):
        self.both(self.merge)

    def test_compressing(self):
        self.both(functools.partial(self.store, "compress"))

    def test_splitting(self):
        self.both(functools.partial(self.store, "split"))


if __name__ == "__main__":
    unittest.main()
