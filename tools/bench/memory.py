# SPDX-License-Identifier: Apache-2.0
"""What a VMM's process takes beside the memory of its guest."""
import mmap
import re
import time

SETTLE_SECONDS = 1.0


def warm_up(guest_bytes, guests=8, beside=2 << 30):
    """Touches so much free memory that the guests of a benchmark get what this machine has in hand: a
    virtual machine is given its own memory only at the first touch, for milliseconds a time, and may
    lose it again while nobody uses it."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        available = next(int(line.split()[1]) << 10 for line in meminfo
                         if line.startswith("MemAvailable"))
    size = min(available * 4 // 5, beside + guests * guest_bytes)
    with mmap.mmap(-1, size) as pages:
        for offset in range(0, size, mmap.PAGESIZE):
            pages[offset] = 1


def mappings(pid):
    """(size, anonymous or memfd, {field: bytes}) of each mapping of the process."""
    result = []
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as smaps:
        for line in smaps:
            head = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)", line)
            if head:
                size = int(head[2], 16) - int(head[1], 16)
                result.append((size, not head[3].startswith("/") or "memfd" in head[3], {}))
                continue
            field = re.match(r"(\w+): +(\d+) kB", line)
            if field:
                result[-1][2][field[1]] = int(field[2]) * 1024
    return result


def beyond_guest_memory(guest_bytes):
    """A function of a process that sums all mappings but the guest's memory: those at least three
    quarters its size, which nothing else of a VMM is, and which are present at least in part."""
    def inspect(pid):
        time.sleep(SETTLE_SECONDS)
        sums = {"resident": 0, "anonymous": 0}
        guests = 0
        for size, is_memory, fields in mappings(pid):
            if is_memory and size >= guest_bytes * 3 // 4 and fields["Rss"] > guest_bytes // 16:
                guests += 1
                continue
            sums["resident"] += fields["Rss"]
            sums["anonymous"] += fields["Anonymous"]
        if guests == 0:
            raise RuntimeError(f"process {pid}: none of its mappings looks like guest memory")
        return sums
    return inspect
