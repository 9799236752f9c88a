# SPDX-License-Identifier: Apache-2.0
"""What dm-log-writes has logged, replayed: a disk as cutting its power at any moment would leave it.

The kernel describes the target in Documentation/admin-guide/device-mapper/log-writes.rst. A log begins
with a sector that says how many entries follow; each is a sector of its own, and its data behind it:

    FUA FUA mark  write write write FLUSH  FUA mark FUA  write write FLUSH …

A write that may stay in the disk's cache is logged right before the flush that began after its end;
one that may not (FUA) when it has ended, as flushes and marks are. So what stands before a mark was on
the disk when the mark was made, and of the writes before a flush any may have been when it was cut off.
"""
import collections
import os
import struct

SECTOR = 512
BLOCK = 4096  # what disks write whole
MAGIC, VERSION = 0x6a736677736872, 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8

# `offset` and `size` are bytes of the disk; `data` is where the log has them.
Entry = collections.namedtuple("Entry", "flags offset size data mark")


def extents(descriptor):
    """(start, end) of what a sparse file has."""
    place, size = 0, os.fstat(descriptor).st_size
    while place < size:
        try:
            place = os.lseek(descriptor, place, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(descriptor, place, os.SEEK_HOLE)
        yield place, end
        place = end


class WriteLog:
    """The entries of the log in the file `path`."""

    def __init__(self, path):
        self.file = open(path, "rb")
        magic, version, count, sector_size = struct.unpack("<QQQI", self.read(0, 28))
        if (magic, version, sector_size) != (MAGIC, VERSION, SECTOR):
            raise ValueError(f"{path} is no log that is understood here")
        self.entries = []
        at = SECTOR
        for _ in range(count):
            self.entries.append(self.entry_at(at))
            at = self.entries[-1].data + self.entries[-1].size

    def entry_at(self, at):
        sector, sectors, flags, length = struct.unpack("<4Q", self.read(at, 32))
        if flags & DISCARD:
            raise ValueError("a discard: nothing tells what a disk has there afterwards")
        mark = self.read(at + 32, length).decode() if flags & MARK else None
        return Entry(flags, sector * SECTOR, sectors * SECTOR, at + SECTOR, mark)

    def read(self, at, size):
        return os.pread(self.file.fileno(), size, at)

    def close(self):
        self.file.close()

    def marks(self):
        return [index for index, entry in enumerate(self.entries) if entry.mark is not None]

    def flushes(self):
        return [index for index, entry in enumerate(self.entries) if entry.flags & FLUSH]

    def first_cached(self, flush):
        """The index of the first of the writes that the flush with index `flush` was for; its own, if none."""
        while flush > 0 and not self.entries[flush - 1].flags & (FLUSH | FUA | MARK):
            flush -= 1
        return flush


class Replay:
    """Disks as the log's entries have left them, beginning with the bytes of `first`. Indices only grow."""

    def __init__(self, log, first, scratch):
        self.log = log
        self.file = open(scratch, "w+b")
        self.done = 0
        with open(first, "rb") as file:
            self.copy(file.fileno(), self.file.fileno())

    @staticmethod
    def copy(source, target):
        os.ftruncate(target, 0)
        os.ftruncate(target, os.fstat(source).st_size)
        for start, end in extents(source):
            while start < end:
                start += os.copy_file_range(source, target, end - start, start, start)

    def write(self, descriptor, entry, pieces):
        for start, end in pieces:
            os.pwrite(descriptor, self.log.read(entry.data + start, end - start), entry.offset + start)

    def cut_at(self, index, target):
        """`target` becomes the disk right before this entry, had it lost all that was in its cache."""
        for entry in self.log.entries[self.done:index]:
            self.write(self.file.fileno(), entry, [(0, entry.size)])
        self.done = max(self.done, index)
        with open(target, "r+b") as file:
            self.copy(self.file.fileno(), file.fileno())

    def cut_in_flush(self, flush, target, chance):
        """The same before this flush had ended: of the writes that it was for, some are on the disk, some
        in part, some not at all."""
        first = self.log.first_cached(flush)
        self.cut_at(first, target)
        with open(target, "r+b") as file:
            for entry in self.log.entries[first:flush]:
                likely = chance.choice((0, 0.5, 1))
                ends = [*range(BLOCK - entry.offset % BLOCK, entry.size, BLOCK), entry.size]
                blocks = zip([0, *ends], ends)
                self.write(file.fileno(), entry, [block for block in blocks if chance.random() < likely])

    def close(self):
        self.file.close()
