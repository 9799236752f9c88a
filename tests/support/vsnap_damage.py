# SPDX-License-Identifier: Apache-2.0
"""Snapshot files with something wrong in them, by src/snapshot/FORMAT.md: bytes that are not what was
written, and files whose checksums are right and whose content nobody has written."""
import copy
import struct

import vsnap
from vsnap import checksum_of

PAGE = 4096
ENTRY = 64  # of the section table
SECTION_TABLE, PAGE_TABLE, PAGE_CHECKSUMS, FRAME_TABLE = 0x50, 0x68, 0x80, 0x98
TABLES = (PAGE_TABLE, PAGE_CHECKSUMS, FRAME_TABLE)
# (offset, size) of the header's other numbers.
NUMBERS = ((0x08, 4), (0x0c, 4), (0x10, 4), (0x14, 4), (0x18, 8), (0x28, 8), (0x38, 8), (0x40, 8), (0x48, 8),
           (0xb0, 8), (0xb8, 8), (0xc0, 8))
# What text of a configuration becomes in turn.
WORDS = ("0", "1", "-1", "255", "4096", "1e9", "99999999999999999999", "true", '""', '"x"', "[]", "{}", '"1K"', '"4G"',
         '"1P"', '"pci"', '"mmio"', '"restart"', '"off"', "\n", "=", '"', "[", "]", "\0", "\x7f", "é")


def hostile_number(chance, size, own=0):
    """One that a size or an index is hardly meant to be."""
    most = (1 << 8 * size) - 1
    bit = 1 << chance.randrange(8 * size)
    return chance.choice((0, 1, 2, most, most - 1, most >> 1, (most >> 1) + 1, own + 1, own - 1, own * 2, own ^ bit,
                          bit, bit - 1, PAGE, chance.randint(0, most))) & most


def change_bytes(chance, data):
    """A few bits, or a number of 1, 2, 4 or 8 bytes at its place or at any."""
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        if not data:
            return
        if chance.random() < 0.5:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            continue
        size = min(chance.choice((1, 2, 4, 8)), len(data))
        at = chance.randrange(len(data) - size + 1)
        own = int.from_bytes(data[at:at + size], "little")
        data[at:at + size] = hostile_number(chance, size, own).to_bytes(size, "little")


def change_length(chance, data):
    """Cut short, longer, or with a piece of itself gone or there twice."""
    begin = chance.randint(0, len(data))
    end = min(len(data), begin + chance.choice((1, 4, 8, 64, len(data))))
    if chance.random() < 0.5:
        del data[begin:end]
    else:
        data[begin:begin] = data[begin:end] or b"\1"


class File:
    """A snapshot's parts, and `bytes()`: all of it, with checksums that are right."""

    def __init__(self, path):
        whole = vsnap.Snapshot(path)
        self.header = bytearray(whole.at(0, PAGE))
        self.sections = [[tag.encode(), index, version, bytearray(content)]
                         for (tag, index), (version, content) in whole.sections.items()]
        self.tables = {at: bytearray(whole.extent(self.header, at)) for at in TABLES}
        self.offset = whole.memory
        self.memory = bytearray(whole.at(whole.memory, 0 if whole.flags & 2 else whole.memory_size))
        self.pages = whole.pages
        for file in filter(None, (whole.file, whole.raw)):
            file.close()

    def copy(self):
        """Another one with parts of its own, but for memory, which only change_page() changes."""
        other = copy.copy(self)
        other.header = bytearray(self.header)
        other.sections = [[tag, index, version, bytearray(content)] for tag, index, version, content in self.sections]
        other.tables = {at: bytearray(content) for at, content in self.tables.items()}
        return other

    def section(self, tag, index=0):
        return next(content for name, number, _, content in self.sections if (name, number) == (tag, index))

    def bytes(self, change_extents=lambda entries, header: None):
        """`change_extents` may change the section table and the header before they have their checksums."""
        head = bytearray(self.offset)
        place = PAGE + ENTRY * len(self.sections)

        def put(content):
            nonlocal place
            begin, place = place, place + (len(content) + 7) // 8 * 8
            head[begin:begin + len(content)] = content
            return struct.pack("<3Q", begin, len(content), checksum_of(content))

        entries = bytearray()
        for tag, index, version, content in self.sections:
            entries += struct.pack("<16s2I", tag, index, version) + put(content) + bytes(16)
        for at, content in self.tables.items():
            self.header[at:at + 24] = put(content)
        change_extents(entries, self.header)
        head[PAGE:PAGE + len(entries)] = entries
        self.header[SECTION_TABLE:SECTION_TABLE + 24] = struct.pack("<3Q", PAGE, len(entries), checksum_of(entries))
        change_extents(None, self.header)
        self.header[0xff8:] = struct.pack("<Q", checksum_of(self.header[:0xff8]))
        head[:PAGE] = self.header
        return head + self.memory


# Each changes a copy of a file, and gives all its bytes.

def flip_bits(chance, file):
    data = file.bytes()
    ends = (PAGE, PAGE + ENTRY * len(file.sections), PAGE + 20000, len(data))
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        data[chance.randrange(min(chance.choice(ends), len(data)))] ^= 1 << chance.randrange(8)
    return data


def cut(chance, file):
    data = file.bytes()
    size = chance.choice((0, 1, PAGE - 1, PAGE, PAGE + 1, file.offset - 1, file.offset, file.offset + 1, len(data) - 1,
                          len(data) - PAGE, len(data) + 1, len(data) + PAGE, chance.randrange(len(data)),
                          chance.randrange(2 * PAGE)))
    return data[:size] + bytes(max(0, size - len(data)))


def exchange(chance, file):
    """Two pieces, each where the other was."""
    data = file.bytes()
    size = chance.choice((8, 64, 512, PAGE))
    end = chance.choice((PAGE + 20000, len(data))) - size
    one, other = chance.randrange(end), chance.randrange(end)
    data[one:one + size], data[other:other + size] = data[other:other + size], data[one:one + size]
    return data


def change_header(chance, file):
    def change(entries, header):
        if entries is None:
            at, size = chance.choice(NUMBERS)
            own = int.from_bytes(header[at:at + size], "little")
            header[at:at + size] = hostile_number(chance, size, own).to_bytes(size, "little")
    return file.bytes(change)


def change_size_of_memory(chance, file):
    """More pages than any machine has, in a page table that covers them."""
    pages = chance.choice((1, file.pages - 1, file.pages + 1, 1 << 29, 1 << 32, 1 << 37, 1 << 38, (1 << 38) + 1))
    file.header[0x48:0x50] = pages.to_bytes(8, "little")
    kind = chance.choice((vsnap.ZERO, vsnap.ZERO, vsnap.DATA, vsnap.ABSENT))
    runs, most = bytearray(), (1 << 32) - 1 if kind == vsnap.ZERO else len(file.memory) // PAGE
    while pages > 0 and len(runs) < 1 << 16:
        runs += struct.pack("<2IQ", kind, min(pages, most), 0)
        pages -= min(pages, most)
    file.tables[PAGE_TABLE] = runs
    return file.bytes()


def change_extents(chance, file):
    """Of a section or of a table: elsewhere, longer, over another one. What is there has its checksum."""
    number = chance.randrange(len(file.sections) + 4)

    def change(entries, header):
        if number < len(file.sections) and entries is not None:
            target, at = entries, ENTRY * number + 24
        elif number >= len(file.sections) and entries is None:
            target, at = header, SECTION_TABLE + 24 * (number - len(file.sections))
        else:
            return
        fields = list(struct.unpack_from("<2Q", target, at))
        which = chance.randrange(2)
        fields[which] = chance.choice((hostile_number(chance, 8, fields[which]), chance.randrange(1 << 16), PAGE))
        struct.pack_into("<2Q", target, at, *fields)
        if sum(fields) <= len(plain):
            struct.pack_into("<Q", target, at + 16, checksum_of(plain[fields[0]:sum(fields)]))
    plain = file.bytes()
    return file.bytes(change)


def change_page_table(chance, file):
    table = file.tables[PAGE_TABLE]
    if chance.random() < 0.2:
        change_length(chance, table)
        return file.bytes()
    for _ in range(chance.choice((1, 1, 4))):
        at = 16 * chance.randrange(len(table) // 16)
        run = list(struct.unpack_from("<2IQ", table, at))
        which, place = chance.randrange(3), chance.randrange(len(file.memory) // PAGE)
        run[which] = (chance.randrange(4), hostile_number(chance, 4, run[1]),
                      chance.choice((hostile_number(chance, 8, run[2]), place)))[which]
        struct.pack_into("<2IQ", table, at, *run)
        if chance.random() < 0.5:
            # As many pages as before, so that it is another map of all of them.
            runs = [list(run) for run in struct.iter_unpack("<2IQ", table)]
            others = sum(count for number, (_, count, _) in enumerate(runs) if 16 * number != at)
            struct.pack_into("<I", table, at + 4, max(0, file.pages - others) & 0xffffffff)
    return file.bytes()


def change_tables(chance, file):
    change = chance.choice((change_length, change_bytes))
    change(chance, file.tables[chance.choice((PAGE_CHECKSUMS, FRAME_TABLE))])
    return file.bytes()


def change_section(chance, file):
    # Most of a machine's bytes are in two sections: each has the same chance.
    _, _, _, content = chance.choice(file.sections)
    change = chance.choice((change_bytes,) * 6 + (change_length,))
    change(chance, content)
    return file.bytes()


def change_sections(chance, file):
    """One is gone, there twice, by another name, of another version, or has another's content."""
    one, other = chance.choice(file.sections), chance.choice(file.sections)
    what = chance.randrange(7)
    if what == 0:
        file.sections.remove(one)
    elif what == 1:
        file.sections.append(list(one))
    elif what == 2:
        file.sections.append([one[0], one[1] + 1, one[2], bytearray(one[3])])
    elif what == 3:
        one[0] = chance.choice((other[0], b"", b"x" * 16, b"A", b"machine\0x", bytes(chance.randbytes(16))))
    elif what == 4:
        at = chance.choice((1, 2))
        one[at] = hostile_number(chance, 4, one[at])
    elif what == 5:
        one[3], other[3] = other[3], one[3]
    else:
        chance.shuffle(file.sections)
    return file.bytes()


def change_config(chance, file):
    content = file.section(b"machine")
    size = int.from_bytes(content[:4], "little")
    lines = content[4:4 + size].decode().split("\n")
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(lines))
        key, is_value, value = lines[at].partition(" = ")
        what = chance.randrange(5)
        # No path is changed: whoever has files of the host's changed would have to look at them.
        if what == 0:
            del lines[at]
            lines = lines or [""]
        elif what == 1:
            lines.insert(chance.randrange(len(lines)), lines[at])
        elif is_value and "path" not in key and "kernel" not in key and what < 4:
            lines[at] = f"{key} = {chance.choice(WORDS)}"
        elif is_value and "/" not in value:
            place = chance.randint(0, len(lines[at]))
            lines[at] = lines[at][:place] + chance.choice(WORDS) + lines[at][place:]
    text = "\n".join(lines).encode()
    content[:4 + size] = len(text).to_bytes(4, "little") + text
    return file.bytes()


def serve_queues(chance, file):
    """A device whose driver has queues anywhere, going on anywhere in them."""
    devices = [content for tag, _, _, content in file.sections if tag == b"virtio"]
    content = chance.choice(devices)
    queues_at = 30 + int.from_bytes(content[26:30], "little")  # behind the configuration space
    head = content[:queues_at]
    offered = int.from_bytes(head[4:12], "little")
    head[12:20] = (offered if chance.random() < 0.9 else chance.getrandbits(64) & offered).to_bytes(8, "little")
    head[20], head[21] = 0x0f if chance.random() < 0.9 else chance.randrange(256), 1
    queues = list(struct.iter_unpack("<2H?3Q2H?", content[queues_at + 4:]))
    content[queues_at:] = struct.pack("<I", len(queues))
    for most, *_ in queues:
        size = min(1 << chance.randrange(12), most) if chance.random() < 0.95 else chance.randrange(1 << 16)
        areas = [16 * chance.randrange(file.pages * PAGE // 16) for _ in range(3)]
        if chance.random() < 0.1:
            areas[chance.randrange(3)] = chance.choice((file.pages * PAGE - 16, hostile_number(chance, 8)))
        content += struct.pack("<2H?3Q2H?", most, size, chance.random() < 0.9, *areas, chance.randrange(1 << 16),
                               chance.randrange(1 << 16), chance.random() < 0.1)
    content[:queues_at] = head
    return file.bytes()


def change_page(chance, file):
    """What the guest has in a page, with its checksum."""
    file.memory = bytearray(file.memory)
    for _ in range(chance.choice((1, 16))):
        place = chance.randrange(len(file.memory) // PAGE)
        page = bytearray(chance.choice((file.memory[PAGE * place:PAGE * (place + 1)], chance.randbytes(PAGE))))
        change_bytes(chance, page)
        file.memory[PAGE * place:PAGE * (place + 1)] = page
        struct.pack_into("<Q", file.tables[PAGE_CHECKSUMS], 8 * place, checksum_of(page))
    return file.bytes()


KINDS = (flip_bits, cut, exchange, change_header, change_size_of_memory, change_extents, change_page_table,
         change_tables, change_sections, change_page, *(change_section,) * 6, *(change_config,) * 2,
         *(serve_queues,) * 2)


def damaged(chance, file):
    """(what was done, the bytes) of another file with something wrong in it."""
    kind = chance.choice(KINDS)
    return kind.__name__, kind(chance, file.copy())
