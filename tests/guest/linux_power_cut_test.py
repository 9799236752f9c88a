#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a Linux guest was told is durable, after the power of the machine that vireo runs on was cut.

Killing vireo would prove nothing: the kernel keeps what it wrote. So each image is on an ext4 of its own,
whose disk has its writes logged, and the log is marked when the guest says that a record is durable. Then
the log is replayed up to each mark, and into each flush; the file system recovers, and the image must
have the records. It is sparse, so that this takes the file system's journal, too.

A disk whose guest is offered no flush is beside the others: it must lose records, or nothing was tested.
Wants root, on a machine that is ours alone: the test host.
"""
import contextlib
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from block_devices import SECTOR, MappedDevice, load_modules, loop_device, mounted  # noqa: E402
from linux_disk_test import MIB, Guest, InDirectory  # noqa: E402
from vireo_process import run  # noqa: E402
from write_log import BLOCK, Replay, WriteLog, extents  # noqa: E402

LONG = bool(os.environ.get("VIREO_LONG"))
RECORDS = 200 if LONG else 44  # of each disk
UNTOUCHED = 16  # blocks that have data and no record
# The flushes while the guest writes are many, those of vireo's commands few.
CUTS_OF_A_FLUSH, CUTS_OF_A_COMMAND = (4, 40) if LONG else (2, 8)
SIZE = 320 * MIB  # of a guest's disk: an overlay's map has three pages that count, then
HOST_DISK, HOST_LOG = 64 * MIB, 1024 * MIB
WRITERS = 3  # the last of them flushes nothing
FLUSH_MS = 20  # what flushes of a disk take, so that much goes on during them
NEIGHBOURS = 16  # blocks that belong to one writer, so that the order of its records in them is known


def setUpModule():
    load_modules("crc32c_generic", "ext4", "dm-delay", "dm-log-writes")


class Records:
    """What is written to a disk, and what each block may have then: its versions, oldest first, with the
    number of the record that made them. Numbers go up from `first`."""

    def __init__(self, first, chance):
        self.chance = chance
        self.versions = {}
        self.writers = [[] for _ in range(WRITERS)]  # (number, offset, data) of each
        for index in range(RECORDS):
            self.add(first + index, index % WRITERS)
        for _ in range(UNTOUCHED):
            self.versions.setdefault(chance.randrange(SIZE // BLOCK), [(0, chance.randbytes(BLOCK))])

    def numbers(self):
        """Of those that the guest flushes."""
        return {number for records in self.writers[:-1] for number, *_ in records}

    def add(self, number, writer):
        """A record at a new place, or near an earlier one and perhaps over it."""
        size = SECTOR * self.chance.randint(1, 24)
        if self.writers[writer] and self.chance.random() < 0.5:
            place = self.chance.choice(self.writers[writer])[1] // (NEIGHBOURS * BLOCK)
        else:
            place = self.chance.randrange(SIZE // (NEIGHBOURS * BLOCK * WRITERS)) * WRITERS + writer
        room = (NEIGHBOURS * BLOCK - size) // SECTOR
        offset = place * NEIGHBOURS * BLOCK + self.chance.randint(0, room) * SECTOR
        name = f"record {number}\n".encode()
        data = name + self.chance.randbytes(size - len(name))
        self.writers[writer].append((number, offset, data))
        for block in range(offset // BLOCK, (offset + size - 1) // BLOCK + 1):
            versions = self.versions.setdefault(block, [])
            if not versions:
                # Before there are records: data, or a hole.
                versions.append((0, self.chance.choice((bytes(BLOCK), self.chance.randbytes(BLOCK)))))
            whole = bytearray(versions[-1][1])
            start, end = max(block * BLOCK, offset), min((block + 1) * BLOCK, offset + size)
            whole[start % BLOCK:start % BLOCK + end - start] = data[start - offset:end - offset]
            versions.append((number, bytes(whole)))

    def before(self):
        return {block: versions[0][1] for block, versions in self.versions.items()}

    def write_before(self, path):
        with open(path, "wb") as file:
            file.truncate(SIZE)
            for block, data in self.before().items():
                if any(data):
                    os.pwrite(file.fileno(), data, block * BLOCK)

    def judge(self, present, content, acknowledged):
        """(lost, strange): records that were durable and are not there, blocks with what was never to be
        there. A block that one record made is as the next made it, once that one is durable."""
        lost, strange = set(), present - set(self.versions)
        for block, versions in self.versions.items():
            oldest = max(index for index, (number, _) in enumerate(versions)
                         if number == 0 or number in acknowledged)
            if all(data != content[block] for _, data in versions[oldest:]):
                if any(data == content[block] for _, data in versions):
                    lost.add(versions[oldest][0])
                else:
                    strange.add(block)
        return sorted(lost), sorted(strange)


def read_blocks(file, blocks, at=0):
    return {block: os.pread(file.fileno(), BLOCK, at + block * BLOCK) for block in blocks}


def read_raw(path, blocks):
    """The blocks that the file has, and the content of `blocks`."""
    with open(path, "rb") as file:
        present = {block for start, end in extents(file.fileno()) for block in range(start // BLOCK, end // BLOCK)}
        return present, read_blocks(file, blocks)


def read_overlay(path, blocks):
    """The same of an overlay and its base, as devices/block/overlay_file.h describes it."""
    with open(path, "rb") as file:
        header = struct.Struct("<8s8xII5Q16xI")
        slots = [os.pread(file.fileno(), BLOCK, slot * BLOCK) for slot in range(2)]
        newest = max(slots, key=lambda slot: header.unpack_from(slot)[3])
        if not newest.startswith(b"VIREOOVL"):
            raise AssertionError(f"{path} is no overlay")
        *_, map_offset, map_size, data_offset, path_size = header.unpack_from(newest)
        base = newest[header.size:header.size + path_size].decode()
        bits = os.pread(file.fileno(), map_size, map_offset)
        present = {8 * byte.start() + bit for byte in re.finditer(rb"[^\0]", bits) for bit in range(8)
                   if byte[0][0] >> bit & 1}
        content = read_raw(base, blocks)[1]
        return base, present, content | read_blocks(file, present & set(blocks), data_offset)


class LoggedDisk:
    """A disk of the guest's, whose image is on a file system whose disk is logged."""

    def __init__(self, test, name, options, overlay, records):
        self.name = name
        self.options = options
        self.records = records
        self.directory = test.directory / name
        self.mount_point = self.directory / "mounted"
        self.mount_point.mkdir(parents=True)
        self.image = self.mount_point / "image"
        self.overlay = self.mount_point / "overlay" if overlay else None
        for file, size in (("disk", HOST_DISK), ("log", HOST_LOG), ("cut", HOST_DISK)):
            (self.directory / file).touch()
            os.truncate(self.directory / file, size)
        subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-E", "nodiscard,lazy_itable_init=0",
                        self.directory / "disk"], check=True)
        subprocess.run(["cp", "--sparse=always", self.directory / "disk", self.directory / "first"], check=True)
        self.devices = contextlib.ExitStack()
        test.addCleanup(self.devices.close)
        disk, log = (self.devices.enter_context(loop_device(self.directory / file)) for file in ("disk", "log"))
        slow = self.map("slow", f"delay {disk} 0 0 {disk} 0 0 {disk} 0 {FLUSH_MS}")
        self.device = self.map("logged", f"log-writes {slow.path} {log}")
        self.devices.enter_context(mounted(self.device.path, self.mount_point))
        records.write_before(self.image)
        os.sync()
        self.mark("begun")

    def map(self, name, target):
        device = MappedDevice(f"vireo-{os.getpid()}-{self.name}-{name}", [f"{HOST_DISK // SECTOR} {target}"])
        return self.devices.enter_context(device)

    def mark(self, text):
        self.device.message(f"mark {text}")

    def read_log(self):
        """The log, which is complete when nothing uses the disk any more."""
        self.devices.close()
        return WriteLog(self.directory / "log")

    def config(self):
        overlay = f'overlay = "{self.overlay}"' if self.overlay else ""
        return f'[[disk]]\nid = "{self.name}"\npath = "{self.image}"\n{self.options}\n{overlay}\n'


class PowerCut(InDirectory):
    def write_records(self, disks, transport):
        """A guest writes each disk's records: one after the other at first, then with several writers."""
        alone, together, data = [], [], bytearray()
        for disk, letter in zip(disks, "bcdefgh"):
            for writer, records in enumerate(disk.records.writers):
                lines = []
                for number, offset, content in records:
                    # Through the guest's page cache, and past it.
                    modes = ",direct" if number % 4 else ""
                    if writer == WRITERS - 1:
                        modes = ",direct notrunc"  # and no fsync
                    lines.append(f"put {number} vd{letter} {len(content)} {MIB + len(data)} {offset} {modes}")
                    data += content
                alone.append(lines[:len(lines) // 2])
                together += ["{", *lines[len(lines) // 2:], "} &"]
        script = ["put() { dd if=/dev/vda of=/dev/$2 bs=$3 count=1 skip=$4 seek=$5 iflag=skip_bytes "
                  "oflag=seek_bytes$6 conv=${7:-fsync} 2>/dev/null && echo record $1; }"]
        script = "\n".join([*script, *sum(map(list, zip(*alone)), []), *together, "wait", ""]).encode()
        orders = self.directory / "orders"
        orders.write_bytes(script.ljust(MIB, b"\n") + data)

        guest = Guest(self, self.directory, f"""
            [machine]
            memory = "128M"
            transport = "{transport}"
            [[disk]]
            id = "orders"
            path = "{orders}"
            readonly = true
            """ + "".join(disk.config() for disk in disks))
        guest.do(f"head -c {len(script)} /dev/vda >/tmp/orders")
        guest.send("( . /tmp/orders )")
        owners = {number: disk for disk in disks for number in disk.records.numbers()}
        while not (said := guest.read_until(r"\n")).startswith("script: "):
            found = re.fullmatch(r"record (\d+)", said)
            if found and int(found[1]) in owners:
                owners[int(found[1])].mark(found[1])
        guest.quit()

    def disk_command(self, *words):
        ended = run("disk", *words)
        self.assertEqual(ended.status, 0, ended)
        return ended.output

    def rebase_and_commit(self, disk):
        """All that the guest has seen comes into another base."""
        other = disk.mount_point / "other"
        other.touch()
        os.truncate(other, SIZE)
        # The file system has a place for each of the two headers then, so that no journal orders what follows.
        self.disk_command("rebase", disk.overlay, "--base", disk.image, "--moved")
        self.disk_command("rebase", disk.overlay, "--base", other)
        self.disk_command("commit", disk.overlay)

    def look(self, disk, acknowledged, thorough):
        """What the disk's file system has; see Records.judge()."""
        blocks = set(disk.records.versions)
        if not disk.overlay:
            return disk.records.judge(*read_raw(disk.image, blocks), acknowledged)
        self.assertEqual(read_raw(disk.image, blocks)[1], disk.records.before(), "the base is as it was")
        if not disk.overlay.exists():
            return sorted(acknowledged), []
        base, present, content = read_overlay(disk.overlay, blocks)
        if thorough:
            shown = json.loads(self.disk_command("info", disk.overlay, "--json"))
            self.assertEqual((shown["base"]["path"], shown["written_bytes"]), (base, BLOCK * len(present)))
            self.disk_command("commit", disk.overlay)
            self.assertEqual(read_raw(base, blocks)[1], content, "the base has all of it then")
        return disk.records.judge(present, content, acknowledged)

    def replay(self, disk, chance, step=1):
        """(cut, lost, strange) of each cut, or each that is so many steps after another."""
        log = disk.read_log()
        self.addCleanup(log.close)
        begun, *marks, _ = log.marks()
        self.assertEqual({int(log.entries[mark].mark) for mark in marks}, disk.records.numbers())
        cuts = [(mark, None) for mark in marks]
        for flush in log.flushes():
            first = log.first_cached(flush)
            if begun < first < flush:
                cuts += [(first, flush)] * (CUTS_OF_A_FLUSH if flush < marks[-1] else CUTS_OF_A_COMMAND)
        cuts = sorted(cuts, key=lambda cut: cut[0])[::step]
        cut = disk.directory / "cut"
        replay = Replay(log, disk.directory / "first", disk.directory / "replayed")
        self.addCleanup(replay.close)
        found = []
        with loop_device(cut) as device:
            for number, (index, flush) in enumerate(cuts):
                if flush is None:
                    replay.cut_at(index, cut)
                else:
                    replay.cut_in_flush(flush, cut, chance)
                acknowledged = {int(log.entries[mark].mark) for mark in marks if mark < index}
                with mounted(device, disk.mount_point):
                    lost, strange = self.look(disk, acknowledged, thorough=number % 6 == 0)
                found.append(((index, flush), lost, strange))
        replay.cut_at(len(log.entries), cut)
        subprocess.run(["cmp", cut, disk.directory / "disk"], check=True)  # the log tells all that was written
        return found

    def cut(self, kinds, overlay, transport):
        chance = random.Random(transport)
        disks = []
        for index, (name, options) in enumerate(kinds.items()):
            records = Records(1 + index * RECORDS, chance)
            disks.append(LoggedDisk(self, name, options, overlay, records))
        self.write_records(disks, transport)
        for disk in disks:
            if "unsafe" in disk.options:
                found = self.replay(disk, chance, step=8)
                self.assertTrue(any(lost for _, lost, _ in found), "a disk without flushes must lose records")
                continue
            if overlay:
                self.rebase_and_commit(disk)
            found = self.replay(disk, chance)
            wrong = [each for each in found if each[1:] != ([], [])]
            self.assertEqual(len(wrong), 0, f"of {len(found)} cuts of the disk {disk.name}: (where, records lost, "
                                            f"blocks wrong) {wrong[:5]}")
            self.assertGreaterEqual(len(found), len(disk.records.numbers()) + 30)

    def test_raw_images(self):
        self.cut({"buffered": "", "direct": "direct = true", "unsafe": 'cache = "unsafe"'}, False, "pci")

    def test_overlays(self):
        self.cut({"overlay": "", "unsafe": 'cache = "unsafe"'}, True, "mmio")


if __name__ == "__main__":
    unittest.main()
