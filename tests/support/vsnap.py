#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads a snapshot file by its description (src/snapshot/FORMAT.md), sharing nothing with vireo.

usage: vsnap.py FILE [MEMORY]   prints header and sections, writes memory; exit 1 where FILE is damaged
"""
import ctypes
import os
import struct
import sys

PAGE = 4096
ABSENT, ZERO, DATA = 0, 1, 2


# By the library itself: whichever Python runs a test, it has that.
XXHASH = ctypes.CDLL("libxxhash.so.0")
XXHASH.XXH3_64bits.restype = ctypes.c_uint64
XXHASH.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
ZSTD = ctypes.CDLL("libzstd.so.1")
ZSTD.ZSTD_decompress.restype = ctypes.c_size_t
ZSTD.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]


def checksum_of(data):
    return XXHASH.XXH3_64bits(bytes(data), len(data))


class Damaged(Exception):
    """The file is not what its description says."""


def need(condition, what):
    if not condition:
        raise Damaged(what)


def unpacked(content, size):
    """What a zstd frame holds, which is so long."""
    room = ctypes.create_string_buffer(size)
    need(ZSTD.ZSTD_decompress(room, size, content, len(content)) == size, "a frame's size")
    return room.raw


class Fields:
    """The content of a section, one field behind the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def bytes(self, size):
        need(self.at + size <= len(self.data), "section ends too early")
        self.at += size
        return self.data[self.at - size:self.at]

    def number(self, size):
        return int.from_bytes(self.bytes(size), "little")

    def list(self, entry):
        return [entry() for _ in range(self.number(4))]

    def text(self):
        return self.bytes(self.number(4)).decode()


class Snapshot:
    """Everything but memory is read and checked by the constructor."""

    def __init__(self, path):
        self.file = open(path, "rb")
        header = self.at(0, PAGE)
        need(header[:8] == b"vsnap\r\n\x1a", "magic")
        need(checksum_of(header[:0xff8]) == self.u64(header, 0xff8), "header")
        self.version, self.arch, self.kind, self.flags = struct.unpack_from("<4I", header, 8)
        need(self.version == 1 and self.kind in (1, 2) and self.flags in (0, 1, 2), "header")
        self.uuid, self.parent = header[0x18:0x28], header[0x28:0x38]
        self.created_ns, page, self.pages = struct.unpack_from("<3Q", header, 0x38)
        need(page == PAGE, "page size")
        self.memory, self.memory_size, self.places = struct.unpack_from("<3Q", header, 0xb0)
        need(self.memory % PAGE == 0, "memory's offset")
        inside = 0 if self.flags & 2 else self.memory_size
        need(self.file.seek(0, 2) == self.memory + inside, "length")
        self.sections, self.raw = {}, None
        table = self.extent(header, 0x50)
        for i in range(0, len(table), 64):
            tag = table[i:i + 16].rstrip(b"\0").decode()
            index, version = struct.unpack_from("<2I", table, i + 16)
            need((tag, index) not in self.sections, "a section twice")
            self.sections[tag, index] = (version, self.extent(table, i + 24))
        if self.flags & 2:
            name = Fields(self.sections["memory-file", 0][1]).text()
            self.raw = open(os.path.join(os.path.dirname(path), name), "rb")
            need(self.raw.seek(0, 2) == self.memory_size == PAGE * self.pages, "the file of memory")
        runs = self.extent(header, 0x68)
        self.runs = [struct.unpack_from("<2IQ", runs, i) for i in range(0, len(runs), 16)]
        need(sum(count for _, count, _ in self.runs) == self.pages, "page table")
        self.checksums = self.extent(header, 0x80)
        need(len(self.checksums) == 8 * self.places, "page checksums")
        self.frames, self.of_frame, self.frame = None, 0, (None, b"")
        if self.flags & 1:
            table = self.extent(header, 0x98)
            method, self.of_frame, reserved = struct.unpack_from("<2IQ", table, 0)
            need(method == 1 and 1 <= self.of_frame <= 64 and reserved == 0, "frame table")
            self.frames = list(struct.iter_unpack("<3Q", table[16:]))
            need(len(self.frames) == -(-self.places // self.of_frame), "frames")
            need(all(at + size <= self.memory_size for at, size, _ in self.frames), "a frame's place")

    def at(self, offset, size):
        self.file.seek(offset)
        data = self.file.read(size)
        need(len(data) == size, "truncated")
        return data

    @staticmethod
    def u64(data, at):
        return struct.unpack_from("<Q", data, at)[0]

    def extent(self, data, at):
        offset, size, checksum = struct.unpack_from("<3Q", data, at)
        content = self.at(offset, size) if size else b""
        need(size == 0 or PAGE <= offset <= offset + size <= self.memory, "extent")
        need(checksum_of(content) == checksum, "checksum")
        return content

    def page_at(self, place):
        """The page that has this place."""
        if self.frames is None:
            if self.flags & 2:
                self.raw.seek(PAGE * place)
                return self.raw.read(PAGE)
            return self.at(self.memory + PAGE * place, PAGE)
        number = place // self.of_frame
        if self.frame[0] != number:
            at, size, checksum = self.frames[number]
            content = self.at(self.memory + at, size)
            need(checksum_of(content) == checksum, f"frame {number}")
            self.frame = (number, unpacked(content, PAGE * min(self.of_frame, self.places - number * self.of_frame)))
        at = PAGE * (place % self.of_frame)
        return self.frame[1][at:at + PAGE]

    def read_pages(self):
        """(number, kind, bytes or None) of each page; the checksums are checked."""
        number = 0
        for kind, count, place in self.runs:
            for i in range(count):
                data = b"\0" * PAGE if kind == ZERO else None
                if kind == DATA:
                    data = self.page_at(place + i)
                    need(checksum_of(data) == self.u64(self.checksums, 8 * (place + i)),
                         f"page {number + i}")
                yield number + i, kind, data
            number += count

    def config(self):
        return Fields(self.sections["machine", 0][1]).text()


if __name__ == "__main__":
    try:
        snapshot = Snapshot(sys.argv[1])
        kinds = []
        with open(sys.argv[2] if len(sys.argv) > 2 else "/dev/null", "wb") as memory:
            for number, kind, content in snapshot.read_pages():
                kinds.append(kind)
                if kind == DATA:
                    memory.seek(number * PAGE)
                    memory.write(content)
            memory.truncate(len(kinds) * PAGE) if len(sys.argv) > 2 else None
    except Damaged as damage:
        sys.exit(f"{sys.argv[1]}: {damage}")
    print(f"uuid={snapshot.uuid.hex()} pages={len(kinds)} data={kinds.count(DATA)} absent={kinds.count(ABSENT)}")
    for (tag, index), (version, content) in snapshot.sections.items():
        print(f"section={tag},{index} version={version} bytes={len(content)}")
