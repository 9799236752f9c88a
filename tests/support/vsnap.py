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
# By the libraries themselves: whichever Python runs a test, it has those.
XXHASH, ZSTD = ctypes.CDLL("libxxhash.so.0"), ctypes.CDLL("libzstd.so.1")
XXHASH.XXH3_64bits.restype = ctypes.c_uint64
XXHASH.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
ZSTD.ZSTD_decompress.restype = ctypes.c_size_t
ZSTD.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]


class Damaged(Exception):
    """The file is not what its description says."""


def need(condition, what):
    if not condition:
        raise Damaged(what)


def checksum_of(data):
    return XXHASH.XXH3_64bits(bytes(data), len(data))


class Snapshot:
    """Everything but memory is read and checked by the constructor."""

    def __init__(self, path):
        self.file, self.raw = open(path, "rb"), None
        header = self.at(0, PAGE)
        need(header[:8] == b"vsnap\r\n\x1a", "magic")
        need(checksum_of(header[:-8]) == int.from_bytes(header[-8:], "little"), "header")
        self.version, self.arch, self.kind, self.flags = struct.unpack_from("<4I", header, 8)
        need(self.version == 1 and self.kind in (1, 2) and self.flags in (0, 1, 2), "header")
        self.uuid, self.parent = header[0x18:0x28], header[0x28:0x38]
        self.created_ns, page, self.pages = struct.unpack_from("<3Q", header, 0x38)
        self.memory, self.memory_size, self.places = struct.unpack_from("<3Q", header, 0xb0)
        need(page == PAGE and self.memory % PAGE == 0, "page size, or memory's offset")
        inside = 0 if self.flags & 2 else self.memory_size
        need(self.file.seek(0, 2) == self.memory + inside, "length")
        table, runs, checksums, frames = (self.extent(header, at) for at in (0x50, 0x68, 0x80, 0x98))
        self.sections = {}
        for at, (tag, index, version) in zip(range(0, len(table), 64), struct.iter_unpack("<16s2I40x", table)):
            key = tag.rstrip(b"\0").decode(), index
            need(key not in self.sections, "a section twice")
            self.sections[key] = version, self.extent(table, at + 24)
        if self.flags & 2:
            name = self.sections["memory-file", 0][1][4:].decode()
            self.raw = open(os.path.join(os.path.dirname(path), name), "rb")
            need(self.raw.seek(0, 2) == self.memory_size == PAGE * self.pages, "the file of memory")
        self.runs = list(struct.iter_unpack("<2IQ", runs))
        need(sum(count for kind, count, _ in self.runs if kind <= DATA) == self.pages, "page table")
        self.checksums = [number for number, in struct.iter_unpack("<Q", checksums)]
        need(len(self.checksums) == self.places, "page checksums")
        if self.flags & 1:
            method, self.of_frame, reserved = struct.unpack_from("<2IQ", frames)
            need(method == 1 and 1 <= self.of_frame <= 64 and reserved == 0, "frame table")
            self.frames, self.frame = list(struct.iter_unpack("<3Q", frames[16:])), (None, b"")
            need(len(self.frames) == -(-self.places // self.of_frame), "frames")

    def at(self, offset, size, file=None):
        (file or self.file).seek(offset)
        data = (file or self.file).read(size)
        need(len(data) == size, "truncated")
        return data

    def extent(self, data, at):
        offset, size, checksum = struct.unpack_from("<3Q", data, at)
        need(size == 0 or PAGE <= offset <= offset + size <= self.memory, "extent")
        content = self.at(offset, size) if size else b""
        need(checksum_of(content) == checksum, "checksum")
        return content

    def page_at(self, place):
        """The page that has this place."""
        need(place < self.places, "a page's place")
        if not self.flags & 1:
            return self.at((0 if self.raw else self.memory) + PAGE * place, PAGE, self.raw)
        number, within = divmod(place, self.of_frame)
        if self.frame[0] != number:
            at, size, checksum = self.frames[number]
            need(at + size <= self.memory_size, "a frame's place")
            content = self.at(self.memory + at, size)
            need(checksum_of(content) == checksum, f"frame {number}")
            pages = ctypes.create_string_buffer(PAGE * min(self.of_frame, self.places - number * self.of_frame))
            need(ZSTD.ZSTD_decompress(pages, len(pages), content, size) == len(pages), "a frame's size")
            self.frame = number, pages.raw
        return self.frame[1][PAGE * within:PAGE * (within + 1)]

    def read_pages(self):
        """(number, kind, bytes or None) of each page; the checksums are checked."""
        pages = ((kind, place + i) for kind, count, place in self.runs for i in range(count))
        for number, (kind, place) in enumerate(pages):
            data = self.page_at(place) if kind == DATA else bytes(PAGE) if kind == ZERO else None
            need(kind != DATA or checksum_of(data) == self.checksums[place], f"page {number}")
            yield number, kind, data


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
