#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sealed snapshots, on a file system with fs-verity, and files that cannot be read any more.

Wants root, on a machine that is ours alone: the test host.
"""
import contextlib
import errno
import json
import mmap
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from block_devices import load_modules, loop_device, mounted  # noqa: E402
from linux_disk_test import MIB, Guest, InDirectory  # noqa: E402
from vireo_process import run  # noqa: E402

HOST_FAILED = 71
MARK = b"what the guest has in its memory"
CONFIG = """
    [machine]
    memory = "128M"
    """


def setUpModule():
    load_modules("crc32c_generic", "ext4")


class Sealed(InDirectory):
    def setUp(self):
        super().setUp()
        self.control = self.directory / "control"
        self.mount_point = self.directory / "mounted"
        self.mount_point.mkdir()
        self.file = self.mount_point / "vm.vsnap"
        self.disk = self.directory / "disk"

    @contextlib.contextmanager
    def file_system(self, *options):
        if not self.disk.exists():
            self.image("disk", 256 * MIB)
            subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-b", "4096", *options, self.disk], check=True)
        with loop_device(self.disk) as loop, mounted(loop, self.mount_point):
            yield

    def save(self, *options):
        """A snapshot of a guest that has something to be found, and goes on."""
        guest = Guest(self, self.directory, CONFIG, "--control", self.control)
        # The file is in the guest's memory alone.
        guest.do(f"i=0; while [ $i -lt 2000 ]; do echo {MARK.decode()} $i; i=$((i+1)); done >/tmp/marked")
        done = run("ctl", self.control, "snapshot", self.file, *options)
        guest.do("true")
        guest.quit()
        return done

    def sealed(self):
        return json.loads(run("snapshot", "info", self.file, "--json").output)["sealed"]

    def restored(self):
        guest = Guest.__new__(Guest)
        guest.test = self
        guest.begin("restore", self.file)
        return guest

    def test_nobody_writes_to_it_and_it_restores(self):
        with self.file_system("-O", "verity"):
            done = self.save("--seal")
            self.assertEqual(done.status, 0, done)
            self.assertTrue(self.sealed())
            with self.assertRaises(OSError) as raised:
                os.open(self.file, os.O_RDWR)
            self.assertEqual(raised.exception.errno, errno.EPERM)
            self.assertEqual(run("snapshot", "verify", self.file).status, 0)
            self.assertEqual(run("snapshot", "seal", self.file).status, 0, "it is already")
            guest = self.restored()
            self.assertEqual(guest.do("tail -n 1 /tmp/marked"), f"{MARK.decode()} 1999")
            guest.quit()

    def test_one_that_is_sealed_later(self):
        with self.file_system("-O", "verity"):
            self.assertEqual(self.save().status, 0)
            self.assertFalse(self.sealed())
            self.assertEqual(run("snapshot", "seal", self.file).status, 0)
            self.assertTrue(self.sealed())

    def test_what_the_disk_gives_back_wrongly_is_not_read(self):
        with self.file_system("-O", "verity"):
            self.assertEqual(self.save("--seal").status, 0)
        with open(self.disk, "r+b") as file, mmap.mmap(file.fileno(), 0) as disk:
            # The file's page, not the shell's, which has had one line at a time.
            lines = b"".join(b"%s %d\n" % (MARK, number) for number in range(1000, 1010))
            at = disk.find(lines)
            self.assertGreater(at, 0)
            disk[at] ^= 1
        with self.file_system():
            guest = self.restored()
            guest.send("cat /tmp/marked")
            _, errors = guest.process.communicate(timeout=100)
            self.assertEqual(guest.process.returncode, HOST_FAILED, errors)
            self.assertIn(f"{self.file}: guest memory could not be read", errors.decode())

    def test_a_file_that_is_cut_off(self):
        """What KVM brings in the background and cannot have, it would try for ever."""
        with self.file_system():
            self.assertEqual(self.save().status, 0)
            guest = self.restored()
            guest.do("true")
            os.truncate(self.file, 1 << 20)
            with contextlib.suppress(BrokenPipeError):
                guest.send("cat /tmp/marked")
            _, errors = guest.process.communicate(timeout=100)
            self.assertEqual(guest.process.returncode, HOST_FAILED, errors)
            self.assertIn(f"{self.file}: guest memory could not be read", errors.decode())

    def test_a_file_system_without(self):
        with self.file_system():
            done = self.save("--seal")
            self.assertEqual(done.status, HOST_FAILED, done)
            self.assertIn("has no fs-verity", done.errors)
            self.assertEqual([path.name for path in self.mount_point.iterdir()], ["lost+found"])


if __name__ == "__main__":
    unittest.main()
