#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo with Linux kernels: Debian's, unmodified, and the one for micro-VMs where it was built.

Needs a KVM that runs kernel code: the test host has one. VIREO_LONG=1 runs every count and the whole
matrix, and wants the micro-VM kernel (guest-images/build-microvm-kernel).
"""
import collections
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import ARTIFACTS, PROBE, run, start  # noqa: E402
# The test host has fewer physical address bits than most machines, so 1 TiB is tried here as well.
from probe_memory_test import Tebibyte, physical_bits  # noqa: E402, F401

LONG = bool(os.environ.get("VIREO_LONG"))
INITRAMFS = f"{ARTIFACTS}/initramfs.cpio"

# `least` is the least memory in MiB with which the kernel must boot.
Kernel = collections.namedtuple("Kernel", "path least")
CLOUD = f"{ARTIFACTS}/cloud/vmlinuz"
MICRO = f"{ARTIFACTS}/microvm/vmlinuz"
KERNELS = {
    "cloud_bzimage": Kernel(CLOUD, 96),
    "cloud_vmlinux": Kernel(f"{ARTIFACTS}/cloud/vmlinux", 96),
    "generic_bzimage": Kernel(f"{ARTIFACTS}/generic/vmlinuz", 128),
    "generic_vmlinux": Kernel(f"{ARTIFACTS}/generic/vmlinux", 128),
}
if LONG or os.path.exists(f"{ARTIFACTS}/microvm/key"):
    KERNELS |= {"micro_bzimage": Kernel(MICRO, 64),
                "micro_vmlinux": Kernel(f"{ARTIFACTS}/microvm/vmlinux", 64)}
# Those of which one form is enough.
IMAGES = {name: kernel for name, kernel in KERNELS.items() if name.endswith("bzimage")}
CPUS = (1, 2, 8)
TRANSPORTS = ("mmio", "pci")


def boot(image, word, *options, memory="256M", append="quiet", config="", **keywords):
    """Runs a guest that does `word`; `config` is TOML for what has no option."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config)
        file.flush()
        return run("run", file.name, "--kernel", image, "--initramfs", INITRAMFS, "--memory", memory,
                   "--append", f"{append} vireo.do={word}", *options, **keywords)


def start_and_wait(image, word, *options, config=""):
    """A guest in the background that has said that it is ready to do `word`."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as file:
        file.write(config)
    process = start("run", file.name, "--kernel", image, "--initramfs", INITRAMFS, "--append",
                    f"quiet vireo.do={word}", *options)
    for line in process.stdout:
        if f"{word}: ready".encode() in line:
            break
    os.unlink(file.name)
    return process


def for_each(cases):
    """Makes a test of each case out of one method: test_NAME_CASE."""
    def mark(method):
        method.cases = cases
        return method
    return mark


def expand(suite):
    for name, method in list(vars(suite).items()):
        for case, arguments in getattr(method, "cases", {}).items():
            def test(self, method=method, arguments=arguments):
                method(self, *arguments)
            setattr(suite, f"test_{name}_{case}", test)
    return suite


def matrix():
    """Kernel, processors, memory. By default each kernel sees each value once."""
    cases = {}
    for row, (name, kernel) in enumerate(KERNELS.items()):
        for column, cpus in enumerate(CPUS):
            for layer, memory in enumerate((kernel.least, 3584, 6144)):
                if LONG or (row + column + layer) % 3 == 0:
                    cases[f"{name}_{cpus}_cpus_{memory}_mib"] = (kernel.path, cpus, memory)
    return cases


@expand
class Boots(unittest.TestCase):
    @for_each(matrix())
    def boots(self, image, cpus, memory):
        ended = boot(image, "cpus", "--cpus", cpus, memory=f"{memory}M")
        self.assertEqual(ended.status, 0, ended)
        self.assertIn(f"cpus: {cpus}\r\n", ended.output, ended)
        total = int(re.search(r"memory: (\d+)", ended.output)[1]) // 1024
        self.assertLess(total, memory)
        self.assertGreater(total, memory * 0.55 - 40)
        self.assertIn("clocksource: kvm-clock", ended.output)

    def test_kernel_that_unpacks_itself(self):
        ended = boot(CLOUD, "poweroff", config='[boot]\nunpack = "off"\ncache = "off"\n')
        self.assertEqual(ended.status, 0, ended)
        self.assertIn("reboot: Power down", ended.output)

    def test_many_boots_in_a_row(self):
        for number in range(50 if LONG else 5):
            ended = boot(CLOUD, "poweroff")
            self.assertEqual(ended.status, 0, f"boot {number}: {ended}")
            self.assertIn("reboot: Power down", ended.output)

    def test_uuid_reaches_the_guest(self):
        uuid = "8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2d"
        ended = boot(CLOUD, "cpus", config=f'[machine]\nuuid = "{uuid}"\n')
        self.assertIn(f"uuid: {uuid}", ended.output, ended)

    def test_console_input(self):
        # What comes before the guest's driver has set the port up is lost, as on a real one.
        process = start_and_wait(CLOUD, "echo")
        output, errors = process.communicate(b"hello\nquit\n", timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn(b"echo: hello", output)


class MuchMemory(unittest.TestCase):
    def test_linux_boots_in_the_most_that_the_host_can_address(self):
        # mem= keeps the guest from describing each page of it, for which this host has no memory.
        bits = physical_bits()
        most = "1T" if bits > 40 else f"{(1 << bits - 30) - 1}G"
        ended = boot(CLOUD, "cpus", memory=most, append="quiet mem=512M")
        self.assertEqual(ended.status, 0, ended)
        self.assertIn("cpus: 1\r\n", ended.output)


@expand
class Endings(unittest.TestCase):
    @for_each({f"{name}_{word}": (kernel.path, word, status, said)
               for name, kernel in IMAGES.items()
               for word, status, said in (("poweroff", 0, "reboot: Power down"),
                                          ("reboot", 10, "reboot: Restarting system"),
                                          ("panic", 11, "sysrq triggered crash"))})
    def ends(self, image, word, status, said):
        ended = boot(image, word)
        self.assertEqual(ended.status, status, ended)
        self.assertIn(said, ended.output)

    @for_each({name: (kernel.path,) for name, kernel in IMAGES.items()})
    def an_early_panic(self, image):
        ended = run("run", "--kernel", image, "--memory", "128M", "--append", "quiet")
        self.assertEqual(ended.status, 11, ended)
        self.assertIn("Unable to mount root fs", ended.output)

    def test_a_panic_does_not_depend_on_the_reset_after_it(self):
        # panic=0 stands still for ever: only the panic device can have told of it.
        ended = boot(CLOUD, "panic", append="quiet panic=0")
        self.assertEqual(ended.status, 11, ended)

    @for_each({"micro": (MICRO,)} if "micro_bzimage" in KERNELS else {})
    def an_early_panic_of_a_kernel_that_has_the_driver_built_in(self, image):
        ended = run("run", "--kernel", image, "--memory", "64M", "--append", "quiet panic=0")
        self.assertEqual(ended.status, 11, ended)

    def test_triple_fault_of_linux(self):
        ended = boot(CLOUD, "reboot", append="quiet reboot=t")
        self.assertEqual(ended.status, 12, ended)

    def test_triple_fault_of_the_probe(self):
        ended = run("run", "--kernel", PROBE, "--cmdline", "probe=triple")
        self.assertEqual(ended.status, 12, ended)

    @for_each({name: (kernel.path,) for name, kernel in IMAGES.items()})
    def the_power_button(self, image):
        process = start_and_wait(image, "wait")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn(b"reboot: Power down", output, "it was the guest that powered off")

    def test_a_guest_that_ignores_its_button_ends_by_the_second_signal(self):
        process = start_and_wait(CLOUD, "deaf")
        process.send_signal(signal.SIGTERM)
        time.sleep(2)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.assertNotIn(b"Power down", output)


@expand
class Placement(unittest.TestCase):
    @for_each({name: (kernel.path,) for name, kernel in KERNELS.items()
               if LONG or name in ("cloud_bzimage", "micro_bzimage", "micro_vmlinux")})
    def ten_boots_show_at_least_eight_bases(self, image):
        bases = set()
        for _ in range(10):
            process = start("run", "--kernel", image, "--log-level", "debug", "--serial", "null")
            for line in process.stderr:
                found = re.search(rb"virtual base moved by (0x[0-9a-f]+)", line)
                if found:
                    bases.add(found[1])
                    break
            process.kill()
            process.communicate()
        self.assertGreaterEqual(len(bases), 8, bases)


class Control(unittest.TestCase):
    """What a supervisor does with a Linux guest, over the control socket."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.socket = f"{directory.name}/vm.sock"
        self.file = f"{directory.name}/vm.toml"

    def start(self, word, *options, config="", append="quiet"):
        pathlib.Path(self.file).write_text(config, encoding="ascii")
        process = start("run", self.file, "--kernel", CLOUD, "--initramfs", INITRAMFS, "--append",
                        f"{append} vireo.do={word}", "--control", self.socket, *options)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    @staticmethod
    def read_until(process, text):
        said = b""
        while text not in said:
            line = process.stdout.readline()
            if not line:
                raise AssertionError(f"no {text} in {said[-2000:]}")
            said += line
        return said

    def ctl(self, *words):
        ended = run("ctl", self.socket, *words)
        self.assertEqual(ended.status, 0, ended)
        return ended.output

    def test_ready_pause_nmi_and_an_orderly_stop(self):
        process = self.start("wait", "--ready", "serial:wait: ready", "--cpus", "2", append="")
        events = start("ctl", self.socket, "events", "--json") if os.path.exists(self.socket) else None
        self.read_until(process, b"wait: ready")
        self.assertTrue(json.loads(self.ctl("status", "--json"))["ready"])
        self.ctl("pause")
        self.ctl("resume")
        self.ctl("nmi")
        self.assertIn(b"NMI", self.read_until(process, b"NMI"))
        exits = json.loads(self.ctl("stats", "--json"))["vcpus"]
        self.assertEqual(len(exits), 2)
        self.ctl("stop", "--timeout", "60s")
        output, errors = process.communicate(timeout=100)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn(b"reboot: Power down", output)
        self.assertNotIn(b"did not shut down", errors)
        if events:
            events.communicate(timeout=60)

    def test_a_pause_is_no_lockup_of_the_guest(self):
        process = self.start("busy", append="watchdog_thresh=2")
        self.read_until(process, b"busy: ready")
        self.ctl("pause")
        time.sleep(7)  # its watchdog calls 4 s a soft lockup
        self.ctl("resume")
        time.sleep(3)
        self.ctl("stop", "--timeout", "60s")
        output, errors = process.communicate(timeout=100)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn(b"reboot: Power down", output)
        self.assertNotIn(b"soft lockup", output)

    def test_a_reboot_that_stays_in_the_process(self):
        for cpus in ("1", "2"):
            with self.subTest(cpus):
                process = self.start("echo", "--cpus", cpus, config='[machine]\non_reboot = "restart"\n')
                for restarts in range(3):
                    self.read_until(process, b"echo: ready")
                    status = json.loads(self.ctl("status", "--json"))
                    self.assertEqual((status["restarts"], status["pid"]), (restarts, process.pid))
                    process.stdin.write(b"hello\n" if restarts == 2 else b"reboot\n")
                    process.stdin.flush()
                self.read_until(process, b"echo: hello")
                output, errors = process.communicate(b"quit\n", timeout=100)
                self.assertEqual(process.returncode, 0, (output[-2000:], errors))

    def test_a_device_that_was_in_use_starts_anew_with_the_guest(self):
        for transport in TRANSPORTS:
            with self.subTest(transport):
                process = self.start("echo", "--rng", config='[machine]\non_reboot = "restart"\n'
                                     f'transport = "{transport}"\n')
                for line in (b"reboot\n", b"quit\n"):
                    self.read_until(process, b"echo: ready")
                    process.stdin.write(b"rng\n")
                    process.stdin.flush()
                    self.read_until(process, b"rng: 262144 bytes")
                    process.stdin.write(line)
                    process.stdin.flush()
                output, errors = process.communicate(timeout=100)
                self.assertEqual(process.returncode, 0, (output[-2000:], errors))

    def test_a_panic_ends_it_all_the_same(self):
        process = self.start("panic", config='[machine]\non_reboot = "restart"\n')
        process.communicate(timeout=100)
        self.assertEqual(process.returncode, 11)


@expand
class Devices(unittest.TestCase):
    @for_each({f"{name}_{transport}": (kernel.path, transport) for name, kernel in IMAGES.items()
               if not name.startswith("micro") for transport in TRANSPORTS})
    def rng(self, image, transport):
        process = start_and_wait(image, "echo", "--rng", "--cpus", "2",
                                 config=f'[machine]\ntransport = "{transport}"\n')
        output, errors = process.communicate(b"rng\nquit\n", timeout=100)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn(b"rng: virtio_rng.0", output)
        size, packed = map(int, re.search(rb"rng: (\d+) bytes, (\d+) compressed", output).groups())
        self.assertEqual(size, 64 * 4096)
        self.assertGreater(packed, size)


class Reports(unittest.TestCase):
    def test_timeline_has_the_guests_marks(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "t.json"
            self.assertEqual(boot(CLOUD, "poweroff", "--timeline", path).status, 0)
            names = [step["name"] for step in json.loads(path.read_text())["steps"]]
            self.assertLess(names.index("first_entry"), names.index("guest_mark:1"))
            self.assertLess(names.index("guest_mark:2"), names.index("end"))


if __name__ == "__main__":
    unittest.main()
