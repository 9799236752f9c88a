#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo with Debian's unmodified kernels. Needs a KVM that runs kernel code: the test host has one.

VIREO_LONG=1 runs every count in full.
"""
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import ARTIFACTS, PROBE, run, start  # noqa: E402

LONG = bool(os.environ.get("VIREO_LONG"))
INITRAMFS = f"{ARTIFACTS}/initramfs.cpio"


def kernel(flavour, form="vmlinuz"):
    return f"{ARTIFACTS}/{flavour}/{form}"


def boot(image, word, *options, memory="256M", append="quiet", **keywords):
    return run("run", "--kernel", image, "--initramfs", INITRAMFS, "--memory", memory, "--append",
               f"{append} vireo.do={word}", *options, **keywords)


class Boots(unittest.TestCase):
    def check(self, image, cpus, memory, mebibytes):
        ended = boot(image, "cpus", "--cpus", cpus, memory=memory)
        self.assertEqual(ended.status, 0, ended)
        self.assertIn(f"cpus: {cpus}\r\n", ended.output, ended)
        total = int(re.search(r"memory: (\d+)", ended.output)[1]) // 1024
        self.assertLess(total, mebibytes)
        self.assertGreater(total, mebibytes * 0.55 - 40)
        self.assertIn("clocksource: kvm-clock", ended.output)

    def test_cloud_bzimage_in_its_least_memory(self):
        self.check(kernel("cloud"), 1, "96M", 96)

    def test_cloud_vmlinux_two_processors(self):
        self.check(kernel("cloud", "vmlinux"), 2, "3584M", 3584)

    def test_cloud_eight_processors_above_the_hole(self):
        self.check(kernel("cloud"), 8, "6G", 6144)

    def test_generic(self):
        self.check(kernel("generic"), 1, "128M", 128)

    def test_kernel_that_unpacks_itself(self):
        with tempfile.TemporaryDirectory() as directory:
            config = pathlib.Path(directory) / "vm.toml"
            config.write_text('[boot]\nunpack = "off"\ncache = "off"\n')
            ended = run("run", config, "--kernel", kernel("cloud"), "--initramfs", INITRAMFS,
                        "--memory", "256M", "--append", "quiet vireo.do=poweroff")
            self.assertEqual(ended.status, 0, ended)

    def test_several_boots_in_a_row(self):
        for number in range(50 if LONG else 5):
            ended = boot(kernel("cloud"), "poweroff")
            self.assertEqual(ended.status, 0, f"boot {number}: {ended}")

    def test_uuid_reaches_the_guest(self):
        uuid = "8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2d"
        with tempfile.TemporaryDirectory() as directory:
            config = pathlib.Path(directory) / "vm.toml"
            config.write_text(f'[machine]\nuuid = "{uuid}"\n')
            ended = run("run", config, "--kernel", kernel("cloud"), "--initramfs", INITRAMFS,
                        "--memory", "256M", "--append", "quiet vireo.do=cpus")
            self.assertIn(f"uuid: {uuid}", ended.output, ended)

    def test_console_input(self):
        process = start("run", "--kernel", kernel("cloud"), "--initramfs", INITRAMFS, "--append",
                        "quiet vireo.do=echo")
        # What comes before the guest's driver has set the port up is lost, as on a real one.
        for line in process.stdout:
            if b"echo: ready" in line:
                break
        output, errors = process.communicate(b"hello\nquit\n", timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn(b"echo: hello", output)


class Endings(unittest.TestCase):
    def test_reboot_and_panic(self):
        for word, status in (("reboot", 10), ("panic", 11)):
            ended = boot(kernel("cloud"), word)
            self.assertEqual(ended.status, status, ended)

    def test_an_early_panic(self):
        ended = run("run", "--kernel", kernel("cloud"), "--memory", "128M", "--append", "quiet")
        self.assertEqual(ended.status, 11, ended)
        self.assertIn("Unable to mount root fs", ended.output)

    def test_triple_fault(self):
        ended = run("run", "--kernel", PROBE, "--cmdline", "probe=triple")
        self.assertEqual(ended.status, 12, ended)

    def test_a_guest_that_ignores_its_button_ends_by_the_second_signal(self):
        process = start("run", "--kernel", kernel("cloud"), "--initramfs", INITRAMFS, "--append",
                        "quiet vireo.do=wait")
        for line in process.stdout:
            if b"wait: ready" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)


class Placement(unittest.TestCase):
    def test_ten_boots_show_at_least_eight_bases(self):
        bases = set()
        for _ in range(10):
            process = start("run", "--kernel", kernel("cloud"), "--log-level", "debug", "--serial",
                            "null")
            for line in process.stderr:
                found = re.search(rb"virtual base moved by (0x[0-9a-f]+)", line)
                if found:
                    bases.add(found[1])
                    break
            process.kill()
            process.communicate()
        self.assertGreaterEqual(len(bases), 8, bases)


class Reports(unittest.TestCase):
    def test_timeline_has_the_guests_marks(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "t.json"
            self.assertEqual(boot(kernel("cloud"), "poweroff", "--timeline", path).status, 0)
            names = [step["name"] for step in json.loads(path.read_text())["steps"]]
            self.assertLess(names.index("first_entry"), names.index("guest_mark:1"))
            self.assertLess(names.index("guest_mark:2"), names.index("end"))


if __name__ == "__main__":
    unittest.main()
