#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A Linux guest whose disks meet errors of the host: what device mapper fails, and a full file system.

Wants root, on a machine that is ours alone: the test host.
"""
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from block_devices import SECTOR, MappedDevice, load_modules, loop_device, mounted  # noqa: E402
from linux_disk_test import MIB, Guest, InDirectory  # noqa: E402
from vireo_process import run  # noqa: E402

BLOCK = 4096
FIBMAP = 1  # linux/fs.h: which block of the file system a block of a file is
SIZE = 16 * MIB  # of each of the host's disks


def setUpModule():
    load_modules("crc32c_generic", "ext4", "dm-flakey")


class Faults(InDirectory):
    def setUp(self):
        super().setUp()
        self.devices = contextlib.ExitStack()
        self.addCleanup(self.devices.close)

    def host_disk(self, name, *, file_system=False, size=SIZE):
        """A device of device mapper's, and the table that makes it one without faults."""
        disk = self.image(f"{name}.disk", size)
        if file_system:
            subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-m", "0", disk], check=True)
        loop = self.devices.enter_context(loop_device(disk))
        sound = [f"{size // SECTOR} linear {loop} 0"]
        device = self.devices.enter_context(MappedDevice(f"vireo-{os.getpid()}-{name}", sound))
        if file_system:
            (self.directory / name).mkdir()
            self.devices.enter_context(mounted(device.path, self.directory / name))
        return device, loop, sound

    @staticmethod
    def with_bad_block(loop, block):
        """A table of which one block fails."""
        sectors = BLOCK // SECTOR
        before, behind = block * sectors, (block + 1) * sectors
        return [f"{before} linear {loop} 0", f"{sectors} error ",
                f"{SIZE // SECTOR - behind} linear {loop} {behind}"]

    def boot(self, **disks):
        """A guest with these, and a block to write to them."""
        self.control = self.directory / "control"
        self.log = self.directory / "log"
        self.devices_of_guest = {name: f"vd{letter}" for name, letter in zip(disks, "abcdef")}
        self.guest = Guest(self, self.directory, f"""
            [machine]
            memory = "128M"
            [control]
            path = "{self.control}"
            [log]
            file = "{self.log}"
            """ + "".join(f'[[disk]]\nid = "{name}"\n{config}\n' for name, config in disks.items()))
        self.guest.do(f"yes vireo | head -c {BLOCK} >/tmp/data")

    def write(self, disk, block, *, flush=False, fails=False):
        """One request, and a flush where it is wanted; the guest sees whether they fail."""
        self.guest.do(f"dd if=/tmp/data of=/dev/{self.devices_of_guest[disk]} bs={BLOCK} seek={block} oflag=direct "
                      f"{'conv=fsync' if flush else ''} 2>/dev/null", status=int(fails))

    def read(self, disk, block, *, fails=False):
        """The block that was written."""
        self.guest.do(f"dd if=/dev/{self.devices_of_guest[disk]} of=/tmp/got bs={BLOCK} skip={block} count=1 "
                      "iflag=direct 2>/dev/null", status=int(fails))
        if not fails:
            self.guest.do("cmp /tmp/data /tmp/got")

    def assert_failed(self, disk, count, *lines):
        """So many requests have, as vireo and the guest tell."""
        shown = json.loads(run("ctl", self.control, "metrics", "--json").output)
        self.assertEqual(shown["metrics"]["vireo_disk_errors"][disk], count)
        said = self.guest.do(f"dmesg | grep 'I/O error, dev {self.devices_of_guest[disk]}'")
        self.assertEqual(len(said.splitlines()), count, said)
        log = self.log.read_text(encoding="ascii")
        for line in lines:
            self.assertIn(f"disk {disk}: {line}", log)

    def requests_fail(self, disk, device, broken, sound):
        """Each request that meets an error has it, and no other."""
        self.write(disk, 7, flush=True)
        device.load(broken)
        self.read(disk, 7, fails=True)
        self.write(disk, 7, fails=True)
        self.write(disk, 8, flush=True)
        self.read(disk, 8)
        device.load(sound)
        self.read(disk, 7)
        self.write(disk, 7, flush=True)
        self.assert_failed(disk, 2, "a read failed: Input/output error", "a write failed: Input/output error")

    def flushes_fail(self, disk, device, break_it, sound):
        """Writes that the host takes and cannot keep: the flush fails, and so does each that follows."""
        self.write(disk, 7, flush=True)
        break_it()
        self.write(disk, 7)
        self.write(disk, 7, flush=True, fails=True)
        self.assert_failed(disk, 1, "a flush failed: Input/output error; what was written before it may be lost")
        device.load(sound)
        self.write(disk, 8)
        self.read(disk, 8)
        self.write(disk, 9, flush=True, fails=True)
        self.read(disk, 9)
        self.assert_failed(disk, 2)

    def test_what_the_host_cannot_read_or_write(self):
        bad, bad_loop, bad_sound = self.host_disk("bad")
        raw, raw_loop, raw_sound = self.host_disk("raw")
        under, under_loop, under_sound = self.host_disk("under", file_system=True)
        base = self.image("base", 8 * MIB)
        overlay = self.directory / "under/overlay"
        self.boot(bad=f'path = "{bad.path}"\ndirect = true', raw=f'path = "{raw.path}"',
                  copy=f'path = "{base}"\noverlay = "{overlay}"')
        self.requests_fail("bad", bad, self.with_bad_block(bad_loop, 7), bad_sound)
        no_writes = [f"{SIZE // SECTOR} flakey {raw_loop} 0 0 3600 1 error_writes"]
        self.flushes_fail("raw", raw, lambda: raw.load(no_writes), raw_sound)

        def break_overlay():
            # The data is what the file ends with; the file system says where it has put block 7 of it.
            with open(overlay, "rb") as file:
                first = (os.fstat(file.fileno()).st_size - base.stat().st_size) // BLOCK
                block = bytearray(struct.pack("=i", first + 7))
                fcntl.ioctl(file, FIBMAP, block)
            under.load(self.with_bad_block(under_loop, *struct.unpack("=i", block)))

        self.flushes_fail("copy", under, break_overlay, under_sound)
        self.guest.quit()
        ended = run("disk", "info", overlay)
        self.assertEqual(ended.status, 0, ended)

    def test_a_full_file_system(self):
        self.host_disk("full", file_system=True)
        image = self.image("full/image", 0)
        os.truncate(image, 4 * SIZE)
        base = self.image("base", SIZE)
        self.boot(raw=f'path = "{image}"', copy=f'path = "{base}"\noverlay = "{self.directory}/full/overlay"')
        for disk in ("raw", "copy"):
            self.write(disk, 7, flush=True)
        filler = self.directory / "full/filler"
        with open(filler, "wb", buffering=0) as file, self.assertRaises(OSError) as raised:
            while True:
                file.write(bytes(BLOCK))
        self.assertEqual(raised.exception.errno, errno.ENOSPC)
        for disk in ("raw", "copy"):
            self.write(disk, 700, fails=True)
            self.write(disk, 7, flush=True)
        filler.unlink()
        for disk in ("raw", "copy"):
            self.write(disk, 700, flush=True)
            self.read(disk, 700)
            self.assert_failed(disk, 1, "a write failed: No space left on device")
        self.guest.quit()

    def test_a_snapshot_is_not_waited_for_for_ever(self):
        """A disk that does not answer: the guest goes on without its snapshot, and has it when it does."""
        gone, _, _ = self.host_disk("gone")
        under, _, _ = self.host_disk("under", file_system=True)
        base = self.image("base", 8 * MIB)
        self.boot(gone=f'path = "{gone.path}"\ndirect = true',
                  copy=f'path = "{base}"\noverlay = "{self.directory}/under/overlay"')
        words = ("ctl", self.control, "snapshot", self.directory / "vm.vsnap", "--disks", "none")
        # A request of the guest's holds the first up, and the other what it is yet to flush.
        for disk, device in (("gone", gone), ("copy", under)):
            with device.suspended():
                self.guest.do(f"dd if=/tmp/data of=/dev/{self.devices_of_guest[disk]} bs={BLOCK} oflag=direct "
                              "2>/dev/null & written=$!; sleep 1")
                ended = run(*words)
                self.assertEqual(ended.status, 1, ended)
                self.assertIn(f"requests to disks ({disk}) have not ended", ended.errors)
                self.assertEqual(self.guest.do("echo here"), "here")
                ended = run(*words)
                self.assertEqual(ended.status, 1, ended)
                self.assertIn("has not answered", ended.errors)
            self.guest.do("wait $written")
            self.read(disk, 0)
            self.write(disk, 1, flush=True)
            self.assertEqual(run(*words).status, 0)
            self.read(disk, 1)
        self.guest.quit()

    def test_a_snapshot_that_fails_when_its_disks_are_frozen(self):
        """The guest has gone on upon overlays by then: they stay, and another snapshot can be had."""
        size = 256 * MIB
        target, loop, _ = self.host_disk("target", file_system=True, size=size)
        image = self.image("image", 8 * MIB)
        overlay, file = self.directory / "overlay", self.directory / "target/vm.vsnap"
        self.boot(data=f'path = "{image}"')
        self.write("data", 7, flush=True)
        target.load([f"{size // SECTOR} flakey {loop} 0 0 3600 1 error_writes"])
        words = ("ctl", self.control, "snapshot", file, "--disks", "freeze", "--disk-files", f"data={overlay}")
        ended = run(*words)
        self.assertEqual(ended.status, 1, ended)
        self.assertIn(f'Input/output error; disk "data" stays frozen, and goes on in {overlay}\n', ended.errors)
        self.assertEqual(list(file.parent.glob("vm*")), [])
        disk, = json.loads(run("ctl", self.control, "config", "--json").output)["config"]["disk"]
        self.assertEqual(disk["overlay"], str(overlay))
        self.write("data", 8, flush=True)
        self.read("data", 7)
        after = self.directory / "after.vsnap"
        ended = run("ctl", self.control, "snapshot", after, "--disks", "none", "--then", "stop")
        self.assertEqual(ended.status, 0, ended)
        self.guest.end()
        self.assertEqual(run("snapshot", "verify", after).status, 0)
        self.assertEqual(run("disk", "commit", overlay).status, 0)
        data = (b"vireo\n" * BLOCK)[:BLOCK]
        self.assertEqual(image.read_bytes()[7 * BLOCK:9 * BLOCK], data * 2)


if __name__ == "__main__":
    unittest.main()
