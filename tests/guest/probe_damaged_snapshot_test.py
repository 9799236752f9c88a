#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Snapshots with something wrong in them: refused with the file's name and the reason, or restored to a
guest that runs or comes to grief by itself.

VIREO_DAMAGED_SNAPSHOTS says how many, VIREO_DAMAGE_SEED which ones: one that failed is made again by the
seed that its message has, as the only one.
"""
import json
import os
import pathlib
import random
import re
import select
import signal
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import vsnap  # noqa: E402
import vsnap_damage  # noqa: E402
from probe_disk import job_values  # noqa: E402
from probe_hold import HoldTest  # noqa: E402
from vireo_process import PROBE, TIMEOUT, is_sanitized, reap, run, start  # noqa: E402

COUNT = int(os.environ.get("VIREO_DAMAGED_SNAPSHOTS", "40" if is_sanitized() else "100"))
SEED = os.environ.get("VIREO_DAMAGE_SEED")
# What is given to a guest before it is ended: long enough for one that is well to end by itself.
GUEST_SECONDS = 1
# Refused: without what an option names, unusable, a file missing, KVM or the system does not take it, or
# its configuration is wrong.
REFUSED = (64, 65, 66, 69, 71, 78)
# The guest: powered off, rebooted, panicked, crashed; not ready in time.
GUEST_ENDED = (0, 10, 11, 12, 13)
OUR_FAULT = "Sanitizer|runtime error|CHECK|check failed|terminate called|Assertion"


class Damaged(HoldTest):
    def setUp(self):
        super().setUp()
        self.file = self.directory / "damaged.vsnap"
        self.whole, self.diff = self.directory / "whole.vsnap", self.directory / "diff.vsnap"
        self.image = self.directory / "data.img"
        self.image.write_bytes(b"a" * (1 << 20))

    def snapshots(self, machine):
        """A machine with devices of each kind, and what changed in it later."""
        config = self.directory / "vm.toml"
        config.write_text(f"[machine]\ntrack_dirty = true\n{machine}\n", encoding="ascii")
        self.start("60000 memory=1", config, "--rng", "--disk", f"id=data,path={self.image}")
        self.check()
        self.control("snapshot", self.whole, "--disks", "none")
        self.check()
        self.control("snapshot", self.diff, "--diff", "--then", "stop")
        self.process.communicate()
        config.unlink()

    def look(self, chance):
        """The commands that only look at files."""
        merged = self.directory / "merged.vsnap"
        words = chance.choice((["verify", self.file], ["info", self.file], ["info", "--json", self.file],
                               ["merge", self.file, self.diff, "--output", merged],
                               ["merge", self.whole, self.file, "--output", merged]))
        ended = run("snapshot", *words)
        self.sound(ended.status, (0, 65, 71), ended.errors)
        if merged.exists():
            self.assertEqual(ended.status, 0, ended)
            self.assertEqual(run("snapshot", "verify", merged).status, 0)
            merged.unlink()

    def sound(self, status, allowed, errors):
        self.assertIn(status, allowed, errors)
        self.assertNotRegex(errors, OUR_FAULT)
        if status in REFUSED:
            self.assertRegex(errors, r"(?:^|\n)vireo: [^\n]+\n$")
        if status == 65:
            self.assertIn(str(self.directory), errors)

    def restore(self, chance):
        """The status of a restored guest that is asked to check itself and to end."""
        reader, writer = os.pipe()
        process = start("restore", self.file, "--stale-disk", "data", "--memory", chance.choice(("map", "copy")),
                        "--control", self.socket, "--notify", f"fd:{writer}", pass_fds=[writer])
        os.close(writer)
        try:
            with os.fdopen(reader, "rb", buffering=0) as ready:
                self.assertTrue(select.select([ready], [], [], TIMEOUT)[0], "it hangs before the guest begins")
                began = ready.read(1)
            if began and chance.random() < 0.2:
                self.save_again()
            try:
                _, errors = process.communicate(b"cq", timeout=GUEST_SECONDS if began else TIMEOUT)
            except subprocess.TimeoutExpired:
                # The second of them does not ask the guest.
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=TIMEOUT)
        finally:
            reap(process)
        self.sound(process.returncode, GUEST_ENDED + REFUSED, errors.decode())
        return process.returncode

    def save_again(self):
        """What was restored can be saved, as long as it runs."""
        again = self.directory / "again.vsnap"
        ended = run("ctl", self.socket, "snapshot", again, "--disks", "none")
        self.sound(ended.status, (0, 1, 69), ended.errors)
        if ended.status == 0:
            self.assertEqual(run("snapshot", "verify", again).status, 0)
            again.unlink()

    def damage(self, machine):
        self.snapshots(machine)
        whole, diff = vsnap_damage.File(self.whole), vsnap_damage.File(self.diff)
        self.file.write_bytes(whole.bytes())
        self.assertEqual(self.restore(random.Random(1)), 0, "what is only written anew is well")
        present = sorted(os.listdir(self.directory))
        seeds = [int(SEED)] if SEED else [random.randrange(1 << 32) for _ in range(COUNT // 2)]
        for seed in seeds:
            chance = random.Random(seed)
            is_diff = chance.random() < 0.1
            kind, content = vsnap_damage.damaged(chance, diff if is_diff else whole)
            self.file.write_bytes(content)
            with self.subTest(VIREO_DAMAGE_SEED=seed, kind=kind):
                self.restore(chance)
                if is_diff or chance.random() < 0.2:
                    self.look(chance)
                self.assertEqual(sorted(os.listdir(self.directory)), present)

    def test_over_mmio(self):
        self.damage('transport = "mmio"')

    def test_over_pci(self):
        self.damage('transport = "pci"\ncpus = 2')

    def test_the_file_has_no_say_in_what_the_process_may(self):
        """Somebody has written into the configuration what whoever restores it decides."""
        self.snapshots("")
        whole = vsnap_damage.File(self.whole)
        content = whole.section(b"machine")
        size = int.from_bytes(content[:4], "little")
        text = content[4:4 + size].decode()
        for before, after in (
                ("[process]", f'[process]\npid_file = "{self.directory}/pid"\ntimeline = "{self.directory}/timeline"'),
                ("[log]", f'[log]\nfile = "{self.directory}/log"'),
                ('timeout = "30s"', 'timeout = "1ms"'),
                ('when = "started"', 'when = "mark:7"'),
                ("core_scheduling = false", 'rlimits = { nofile = "1:1" }'),
                ("allow_paths = []", f'allow_paths = ["{self.directory}"]'),
                ("enabled = true", "enabled = false"),
                ("[rng]", f'[metrics]\npath = "{self.directory}/metrics"\n[rng]'),
                ("[serial]", f'[control]\npath = "{self.directory}/other.sock"\n[serial]')):
            self.assertIn(before, text)
            text = text.replace(before, after)
        content[:4 + size] = len(text.encode()).to_bytes(4, "little") + text.encode()
        self.file.write_bytes(whole.bytes())
        present = sorted([*os.listdir(self.directory), "vm.sock"])
        self.begin("restore", self.file, "--stale-disk", "data")
        self.checks = 1
        self.check()
        shown = json.loads(self.control("config", "--json").output)["config"]
        self.assertEqual(sorted(os.listdir(self.directory)), present)
        self.assertEqual((shown["sandbox"], shown["limits"].get("rlimits")),
                         ({"enabled": True, "allow_paths": []}, None))
        self.quit()

    @staticmethod
    def place(file, number, devices=2):
        """Where the file has that many virtio-mmio devices, and a setter of one's address and GSI."""
        content = file.section(b"machine")
        at = len(content) - 16 - 12 * (devices - number)

        def move(address, gsi):
            content[at:at + 12] = struct.pack("<QI", address, gsi)
        return struct.unpack_from("<QI", content, at), move

    def test_devices_are_where_the_file_has_them(self):
        """The guest does its job on the disk, holds, and does it again after a reboot, which tells it where the
        disk is."""
        config = self.directory / "vm.toml"
        config.write_text('[machine]\ntransport = "mmio"\non_reboot = "restart"\n', encoding="ascii")
        self.begin("run", config, "--kernel", PROBE, "--memory", "64M", "--rng",
                   "--disk", f"id=data,path={self.image}", "--cmdline", "probe=info probe=blk op=mix bs=4096 depth=4 "
                   "count=32 probe=hold 60000 memory=1 probe=reboot acpi=off")
        self.lines_to("probe: hold=ready")
        self.control("snapshot", self.whole, "--then", "stop")
        self.process.communicate()
        file = vsnap_damage.File(self.whole)
        (address, gsi), move = self.place(file, 0)
        move(address + 0x100000, gsi + 8)
        self.file.write_bytes(file.bytes())
        self.begin("restore", self.file)
        self.process.stdin.write(b"q")
        self.process.stdin.flush()
        text = "\n".join(self.lines_to("probe: hold=ready"))
        self.assertIn(f"virtio_mmio.device=4K@{address + 0x100000:#x}:{gsi + 8}", text)
        values = job_values(text)
        self.assertEqual((values["errors"], values["requests"]), (0, 32))
        self.control("kill")
        self.process.communicate()

    def test_devices_where_none_can_be(self):
        self.snapshots('transport = "mmio"')
        whole = vsnap_damage.File(self.whole)
        (address, gsi), _ = self.place(whole, 0)
        (beside, _), _ = self.place(whole, 1)
        for wrong in ((0, gsi), (address + 8, gsi), (0xd0000000, gsi), ((1 << 64) - 4096, gsi), (beside, gsi),
                      (address, gsi + 1), (address, 9), (address, 4), (address, 24), (address, 1 << 31)):
            file = whole.copy()
            self.place(file, 0)[1](*wrong)
            self.file.write_bytes(file.bytes())
            ended = run("restore", self.file, "--stale-disk", "data")
            self.assertEqual(ended.status, 65, (wrong, ended))
            self.assertIn("where none can be", ended.errors)

    def test_more_memory_than_any_machine_has(self):
        """A page table of a few runs can say so: looking at it and merging it costs by the runs."""
        self.snapshots("")
        pages = 1 << 38
        files = []
        for name, kind in ((self.whole, vsnap.ZERO), (self.diff, vsnap.ABSENT)):
            file = vsnap_damage.File(name)
            file.header[0x48:0x50] = pages.to_bytes(8, "little")
            one = struct.pack("<2IQ", kind, 1 << 31, 0)
            file.tables[vsnap_damage.PAGE_TABLE] = bytearray(one * (pages >> 31))
            files.append(self.directory / f"huge-{name.name}")
            files[-1].write_bytes(file.bytes())
        merged = self.directory / "merged.vsnap"
        for words in (["verify", *files], ["info", files[0]], ["merge", *files, "--output", merged],
                      ["verify", merged]):
            ended = run("snapshot", *words)
            # Where the file system has no files that long, the system says so.
            self.sound(ended.status, (0, 71) if "merge" in words else (0,), ended.errors)
            self.assertNotIn("out of memory", ended.errors)
            if ended.status != 0:
                return
        ended = run("restore", merged)
        self.sound(ended.status, (65,), ended.errors)

    def test_a_section_of_no_possible_name_is_named_as_text(self):
        self.snapshots("")
        whole = vsnap_damage.File(self.whole)
        whole.sections[-1][0] = b"\x1b[2J\n"
        self.file.write_bytes(whole.bytes())
        for words in (["snapshot", "info"], ["snapshot", "verify"], ["restore"]):
            ended = run(*words, self.file)
            self.assertEqual((ended.status, ended.output), (65, ""), ended)
            self.assertIn(str(self.file), ended.errors)
            self.assertNotIn("\x1b[2J", ended.errors)
            self.assertEqual(ended.errors.count("\n"), 1, ended.errors)


if __name__ == "__main__":
    unittest.main()
