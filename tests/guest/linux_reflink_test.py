#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Overlays on a file system with reflinks: XFS.

Wants root, on a machine that is ours alone: the test host.
"""
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from block_devices import load_modules, loop_device, mounted  # noqa: E402
from linux_disk_test import MIB, Guest, InDirectory  # noqa: E402
from vireo_process import run  # noqa: E402

BASE = 64 * MIB
ROOM = 300 * MIB  # what an XFS has at least


def setUpModule():
    load_modules("xfs")


class Reflinks(InDirectory):
    def setUp(self):
        super().setUp()
        disk = self.directory / "disk"
        disk.touch()
        os.truncate(disk, ROOM)
        subprocess.run(["/sbin/mkfs.xfs", "-q", disk], check=True)
        self.mount_point = self.directory / "mounted"
        self.mount_point.mkdir()
        devices = contextlib.ExitStack()
        self.addCleanup(devices.close)
        loop = devices.enter_context(loop_device(disk))
        devices.enter_context(mounted(loop, self.mount_point, "xfs"))

    def free(self):
        os.sync()
        told = os.statvfs(self.mount_point)
        return told.f_bfree * told.f_frsize

    def disk(self, *words):
        ended = run("disk", *words)
        self.assertEqual(ended.status, 0, ended)
        return ended.output

    def test_an_overlay_begins_as_one_of_its_base(self):
        base, overlay = self.mount_point / "base", self.mount_point / "overlay"
        content = bytearray(os.urandom(BASE))
        base.write_bytes(content)
        free = self.free()
        guest = Guest(self, self.directory, f"""
            [machine]
            memory = "128M"
            [[disk]]
            id = "copy"
            path = "{base}"
            overlay = "{overlay}"
            """)
        guest.do(f"yes vireo | head -c {MIB} >/tmp/data")
        guest.do("dd if=/tmp/data of=/dev/vda bs=1M seek=3 conv=fsync 2>/dev/null")
        guest.do(f"blkdiscard -o {8 * MIB} -l {4 * MIB} /dev/vda")
        self.assertEqual(guest.do("dd if=/dev/vda bs=1M skip=3 count=1 2>/dev/null | cmp - /tmp/data && sync && echo same"),
                         "same")
        guest.quit()
        self.assertGreater(self.free(), free - BASE // 4, "it shares what both have")
        self.assertTrue(base.read_bytes() == content, "the base is as it was")
        shown = json.loads(self.disk("info", overlay, "--json"))
        self.assertTrue(shown["cloned"])
        self.assertEqual(shown["written_bytes"], MIB)
        written = (b"vireo\n" * MIB)[:MIB]
        content[3 * MIB:4 * MIB] = written
        content[8 * MIB:12 * MIB] = bytes(4 * MIB)
        other = self.directory / "other"
        other.touch()
        os.truncate(other, BASE)
        self.disk("rebase", overlay, "--base", other)
        self.disk("commit", overlay)
        self.assertTrue(other.read_bytes() == content, "another base has all that the guest has seen")

    def test_a_disk_that_is_copied_for_a_snapshot(self):
        """The VM goes on with its own; a VM that is restored has the copy, as it then was."""
        base, image = self.mount_point / "base", self.mount_point / "image"
        base.write_bytes(os.urandom(BASE))
        image.write_bytes(os.urandom(BASE))
        free = self.free()
        guest = Guest(self, self.directory, f"""
            [machine]
            memory = "128M"
            [[disk]]
            id = "raw"
            path = "{image}"
            [[disk]]
            id = "over"
            path = "{base}"
            overlay = "{self.mount_point / "overlay"}"
            """, "--control", self.directory / "vm.sock")

        def fill(text):
            for disk in ("vda", "vdb"):
                guest.do(f"yes {text} | head -c {MIB} >/dev/{disk} && sync")

        def found():
            return [guest.do(f"echo 3 >/proc/sys/vm/drop_caches; head -n 1000 /dev/{disk} | uniq")
                    for disk in ("vda", "vdb")]
        fill("before")
        snapshot = self.directory / "vm.vsnap"
        saved = run("ctl", self.directory / "vm.sock", "snapshot", snapshot, "--disks", "reflink", "--disk-files",
                    f"raw={self.mount_point}/raw,over={self.mount_point}/over")
        self.assertEqual(saved.status, 0, saved)
        self.assertGreater(self.free(), free - BASE // 2, "they share what they have in common")
        fill("behind")
        self.assertEqual(found(), ["behind", "behind"])
        guest.quit()
        guest.begin("restore", snapshot)
        self.assertEqual(found(), ["before", "before"])
        fill("again")
        guest.quit()
        ended = run("restore", snapshot)
        self.assertEqual(ended.status, 65, ended)
        self.assertIn('disk "raw" was written to', ended.errors)


if __name__ == "__main__":
    unittest.main()
