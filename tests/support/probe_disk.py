# SPDX-License-Identifier: Apache-2.0
"""The probe's jobs on a disk (guest-images/probe/README.md): what they write and what they say."""
import re
import struct

GOLDEN_RATIO = 0x9e3779b97f4a7c15


def pattern(sector, sectors, seed=1):
    """What the probe writes with verify=1."""
    first = 64 * sector + seed * GOLDEN_RATIO
    return b"".join(struct.pack("<Q", (first + i) % (1 << 64)) for i in range(64 * sectors))


def job_values(output):
    """The values of the last job's line, those that are numbers as such; {} where there is none."""
    lines = re.findall(r"^probe: blk=\S+ (.*)$", output, re.MULTILINE)
    if not lines:
        return {}
    values = dict(pair.split("=") for pair in lines[-1].split())
    return {name: int(value) if value.isdecimal() else value for name, value in values.items()}
