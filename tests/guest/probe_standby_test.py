#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""VMs that stand by, and are told over their socket which snapshot they become."""
import json
import os
import pathlib
import signal
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import vsnap  # noqa: E402
from probe_hold import HoldTest  # noqa: E402
from vireo_process import TIMEOUT, run  # noqa: E402

LONG = "60000"  # a timer of that many ms does not come
REFUSED, USAGE, DAMAGED, HOST_FAILED = 1, 64, 65, 71


class Standby(HoldTest):
    def setUp(self):
        super().setUp()
        self.file = self.directory / "vm.vsnap"

    def saved(self, *options, file=None, words=f"{LONG} memory=8", checks=1):
        """A snapshot of a guest that was looked at so often."""
        self.start(words, *options)
        for _ in range(checks):
            self.check()
        self.control("snapshot", file or self.file, "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)

    def status(self):
        return json.loads(self.control("status", "--json").output)

    def stand_by(self, *options):
        self.begin("restore", self.file, "--standby", *options)
        while run("ctl", self.socket, "status").status != 0:
            self.assertIsNone(self.process.poll(), self.process.poll() and self.process.stderr.read())
        status = self.status()
        self.assertEqual((status["state"], status["ready"]), ("standby", False))

    def goes_on(self, checks=1):
        """The guest is the one that was looked at so often."""
        self.checks = checks
        found = self.check()
        self.assertEqual(found["timer"], "0")
        status = self.status()
        self.assertEqual((status["state"], status["ready"]), ("running", True))
        self.quit()

    def refused(self, *words, text):
        ended = run("ctl", self.socket, *words)
        self.assertEqual(ended.status, REFUSED, ended)
        self.assertIn(text, ended.errors)
        self.assertEqual(ended.errors.count("\n"), 1, ended.errors)

    def test_the_snapshot_that_it_was_prepared_from(self):
        for cpus in ("1", "2"):
            self.saved("--rng", "--cpus", cpus)
            self.stand_by()
            self.control("load")
            self.goes_on()

    def test_each_way_of_memory(self):
        self.saved()
        for packed in (False, True):
            if packed:
                self.assertEqual(run("snapshot", "compress", self.file).status, 0)
            for options in ([] if packed else ["--memory", "map"], ["--memory", "fill"], ["--memory", "copy"],
                            ["--prefault"]):
                for words in ((), (self.file,)):
                    with self.subTest(packed=packed, options=options, words=words):
                        self.stand_by(*options)
                        self.control("load", *words)
                        self.goes_on()

    def test_a_later_one_of_the_same_machine_and_one_of_another_like_it(self):
        later, other = self.directory / "later.vsnap", self.directory / "other.vsnap"
        self.saved("--rng")
        self.begin("restore", self.file)
        self.checks = 1
        self.check()
        self.control("snapshot", later, "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        self.saved("--rng", file=other, checks=3)
        for file, checks in ((later, 2), (other, 3)):
            self.stand_by("--name", "pool-7")
            uuid = json.loads(self.control("config", "--json").output)["config"]["machine"]["uuid"]
            self.control("load", file)
            config = json.loads(self.control("config", "--json").output)["config"]
            self.assertEqual(config["name"], "pool-7")
            self.assertEqual(config["machine"]["uuid"] == uuid, file == later)
            self.goes_on(checks)

    def test_what_does_not_fit_is_refused_and_it_stands_by_still(self):
        larger, diff, damaged = (self.directory / f"{name}.vsnap" for name in ("larger", "diff", "damaged"))
        self.saved("--cpus", "2", file=larger)
        self.saved()
        self.begin("restore", self.file)
        self.control("snapshot", diff, "--diff")
        self.control("kill")
        self.process.communicate(timeout=TIMEOUT)
        content = bytearray(self.file.read_bytes())
        content[0x98] ^= 1
        damaged.write_bytes(content)
        self.stand_by()
        self.refused("load", larger, text=f"{larger}: has another machine.cpus than {self.file}")
        self.refused("load", diff, text="only what changed since its parent")
        self.refused("load", damaged, text="is damaged")
        self.refused("load", "/dev/null", text="/dev/null: ")
        for verb in (["pause"], ["resume"], ["nmi"], ["ctrl-alt-del"], ["drive", "data"],
                     ["snapshot", self.directory / "no.vsnap"]):
            self.refused(*verb, text="the VM stands by")
        self.assertFalse((self.directory / "no.vsnap").exists())
        self.control("load")
        self.refused("load", text="the VM is running, and only one that stands by takes a snapshot")
        self.goes_on()

    def test_its_disks_have_to_be_as_they_were(self):
        disk = self.directory / "disk"
        disk.write_bytes(bytes(1 << 20))
        later = self.directory / "later.vsnap"
        self.saved("--disk", f"id=data,path={disk}")
        self.stand_by()
        # Nobody but this VM has it, so this stands for what has no lock.
        os.utime(disk)
        self.refused("load", text='disk "data" was written to since this snapshot was taken')
        self.control("kill")
        self.process.communicate(timeout=TIMEOUT)
        self.begin("restore", self.file, "--stale-disk", "data")
        self.checks = 1
        self.check()
        self.control("snapshot", later, "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        self.stand_by()
        self.control("load", later)
        self.goes_on(2)

    def test_an_end_without_a_guest(self):
        overlay, image = self.directory / "new.overlay", self.directory / "disk"
        image.write_bytes(bytes(1 << 20))
        self.saved("--disk", f"id=data,path={image}")

        def by_signal():
            self.process.send_signal(signal.SIGTERM)
        for end in (lambda: self.control("stop"), lambda: self.control("kill"), by_signal):
            self.stand_by("--disk", f"id=data,overlay={overlay}", "--pid-file", self.directory / "pid")
            end()
            output, errors = self.process.communicate(timeout=TIMEOUT)
            self.assertEqual((self.process.returncode, output), (0, b""), errors)
            self.assertFalse(self.socket.exists())
            self.assertFalse((self.directory / "pid").exists())

    def test_a_reboot(self):
        config = self.directory / "vm.toml"
        config.write_text('[machine]\non_reboot = "restart"\n', encoding="ascii")
        self.saved(config, words=f"{LONG} memory=8 probe=reboot")
        self.stand_by()
        self.control("load")
        self.reboot()
        self.check()
        self.control("kill")
        self.process.communicate(timeout=TIMEOUT)

    def test_damage_that_is_found_late_ends_it_with_its_name(self):
        self.saved()
        content = bytearray(self.file.read_bytes())
        begin, size = (int.from_bytes(content[at:at + 8], "little") for at in (0xb0, 0xb8))
        content[begin + size // 2] ^= 0x40
        self.file.write_bytes(content)
        self.stand_by("--memory", "copy")
        ended = run("ctl", self.socket, "load")
        self.assertEqual(ended.status, REFUSED, ended)
        output, errors = self.process.communicate(timeout=TIMEOUT)
        self.assertEqual((self.process.returncode, output), (DAMAGED, b""), errors)
        for text in (ended.errors, errors.decode()):
            self.assertRegex(text, f"{self.file}: .*is damaged")

    def test_a_file_that_is_cut_off_ends_it_with_its_name(self):
        other = self.directory / "other.vsnap"
        self.saved(words=f"{LONG} memory=24")
        other.write_bytes(self.file.read_bytes())
        self.stand_by()
        self.control("load", other)
        with open(other, "r+b") as file:
            file.truncate(4096)
        output, errors = self.process.communicate(b"cc", timeout=TIMEOUT)
        self.assertEqual((self.process.returncode, output), (HOST_FAILED, b""), errors)
        self.assertIn(f"{other}: guest memory could not be read", errors.decode())

    def test_without_a_socket_nobody_could_tell_it(self):
        ended = run("restore", self.file, "--standby")
        self.assertEqual(ended.status, USAGE, ended)
        self.assertIn("--control", ended.errors)

    def test_a_clock_has_gone_on_meanwhile(self):
        self.start(f"{LONG} memory=8")
        before = self.check()
        begun = time.monotonic_ns()
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        self.stand_by()
        time.sleep(2)
        self.control("load")
        after = self.check()
        host = time.monotonic_ns() - begun
        guest = int(after["kvmclock_ns"]) - int(before["kvmclock_ns"])
        self.assertAlmostEqual(guest / 1e9, host / 1e9, delta=0.5)
        self.quit()


if __name__ == "__main__":
    unittest.main()
