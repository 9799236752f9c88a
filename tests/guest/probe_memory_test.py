#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Much more guest memory than the host has, with the probe as the guest: on any KVM."""
import pathlib
import re
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import PROBE, run  # noqa: E402


def physical_bits():
    return int(re.search(r"(\d+) bits physical", pathlib.Path("/proc/cpuinfo").read_text())[1])


class Tebibyte(unittest.TestCase):
    """1 TiB of guest RAM ends 1 GiB above 2^40, because of the hole under 4 GiB."""

    def test_accepted_where_the_host_can_address_it_else_refused_by_name(self):
        bits = physical_bits()
        ended = run("run", "--kernel", PROBE, "--memory", "1T", "--cmdline",
                    "probe=hello end=poweroff")
        if bits > 40:
            self.assertEqual(ended.status, 0, ended)
            self.assertIn("probe: hello", ended.output)
        else:
            self.assertEqual(ended.status, 78, ended)
            self.assertRegex(ended.errors, rf"^vireo: machine.memory: 1T .* {bits} physical "
                             r"address bits\n$")

    def test_the_most_that_fits_in_40_bits(self):
        ended = run("run", "--kernel", PROBE, "--memory", "1023G", "--cmdline",
                    "probe=hello end=poweroff")
        self.assertEqual(ended.status, 0 if physical_bits() >= 40 else 78, ended)
        self.assertEqual("probe: hello" in ended.output, physical_bits() >= 40)


if __name__ == "__main__":
    unittest.main()
