#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo-bench boot --explain as a whole, with the probe and with Linux."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools/bench"), str(ROOT / "tests/support")]
import trials  # noqa: E402
from bench_explain_test import Page  # noqa: E402
from vireo_process import ARTIFACTS, PROBE, VIREO  # noqa: E402

TEST_HOST = [str(ROOT / "tools/test-host")]
HOST = "bench-explain"


def kvm_usable():
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def kvm_runs_kernels():
    return kvm_usable() and any(pathlib.Path(f"/sys/module/{name}").exists() for name in ("kvm_intel", "kvm_amd"))


class Whole(unittest.TestCase):
    """The program, with guests: here where KVM can, else in a test host."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.outside = self.inside = pathlib.Path(directory.name)
        self.prefix = []

    def in_host(self):
        self.addCleanup(subprocess.run, [*TEST_HOST, "stop", "--name", HOST], check=False)
        self.outside = pathlib.Path(subprocess.run([*TEST_HOST, "share", "--name", HOST], check=True,
                                                   stdout=subprocess.PIPE).stdout.decode().strip())
        self.inside = pathlib.Path("/mnt/share")
        self.prefix = [*TEST_HOST, "exec", "--name", HOST, "--timeout", "500", "--"]

    def bench(self, *words, status=0):
        done = subprocess.run([*self.prefix, sys.executable, ROOT / "tools/vireo-bench", "boot", "--explain",
                               "--vireo", VIREO, "--json", self.inside / "r.json", "--html", self.inside / "r.html",
                               *map(str, words)], capture_output=True, check=False, timeout=600)
        said = done.stdout.decode(), done.stderr.decode()
        self.assertEqual(done.returncode, status, said)
        if status:
            return said[1]
        return (said[0], json.loads((self.outside / "r.json").read_text(encoding="utf-8")),
                (self.outside / "r.html").read_text(encoding="utf-8"))

    def probe(self, words, *options, **keywords):
        if not kvm_usable():
            self.in_host()
        return self.bench("--kernel", PROBE, "--memory", 64, "--cmdline", words, "--probe", PROBE, *options,
                          **keywords)

    def test_the_probe(self):
        text, found, page = self.probe("probe=hello probe=touch 8 probe=mark 2 end=poweroff", "--runs", 6, "--try",
                                       "probe=panic", "machine.prefault=true", "machine.memory=1M", "without=quiet",
                                       "probe=mark")
        explanation = found["explanation"]
        self.assertEqual([phase["label"] for phase in explanation["phases"]],
                         ["to mark 1", "mark 1 to mark 2", "mark 2 to the end"])
        # 8 MiB in small pages, or in large ones where the host gives them without being asked.
        self.assertGreaterEqual(explanation["phases"][1]["pages_touched"], 2048)
        self.assertGreater(explanation["kvm"]["pf_fixed"], 0)
        self.assertIn("serial", [row["device"] for row in explanation["exits_by_device"]])
        self.assertEqual(list(explanation["estimates"]), ["page_faults", "exits_to_vireo", "exits_in_kvm"])
        rows = {row["name"]: row for row in found["changes"]}
        self.assertEqual({name: rows[name]["verdict"] for name in
                          ("probe=panic", "machine.memory=1M", "without=quiet", "probe=mark")},
                         {"probe=panic": "fails", "machine.memory=1M": "refused", "without=quiet": "not applicable",
                          "probe=mark": "fails"})
        self.assertIn("status 11", rows["probe=panic"]["failure"])
        self.assertIn("guest_mark", rows["probe=mark"]["failure"])
        self.assertEqual(rows["machine.prefault=true"]["rounds"], 6)
        self.assertEqual(len(rows[trials.CONTROL]["values"]["base"]), 6)
        self.assertIn("changes tried", text)
        self.assertTrue([title for title in Page(page).titles if title.startswith("mark 1 to mark 2: ")])

    def test_a_guest_that_ends_badly_is_not_explained(self):
        self.assertRegex(self.probe("probe=panic", "--no-try", status=1), "must come to an end .* status 11")

    def test_a_configuration_that_vireo_refuses(self):
        self.assertIn("--memory", self.probe("probe=hello", "--memory", "7", status=1))

    def test_linux(self):
        if not kvm_runs_kernels():
            self.in_host()
        text, found, _ = self.bench(
            "--kernel", f"{ARTIFACTS}/cloud/vmlinuz", "--initramfs", f"{ARTIFACTS}/initramfs.cpio", "--memory", 128,
            "--runs", 1, "--timeout", 100, "--try", "without=quiet", "initcall_blacklist=populate_rootfs")
        self.assertTrue(found["command_line"].startswith("console=ttyS0 "), found["command_line"])
        self.assertTrue(found["command_line"].endswith(" quiet vireo.do=reboot"))
        calls = [call["name"] for call in found["explanation"]["initcalls"]]
        self.assertGreater(len(calls), 200)
        self.assertIn("serial8250_init", calls)
        self.assertEqual([phase["label"] for phase in found["explanation"]["phases"]],
                         ["to mark 1", "mark 1 to mark 2", "mark 2 to the end"])
        rows = {row["name"]: row for row in found["changes"]}
        self.assertEqual(rows["without=quiet"]["verdict"], "too few rounds")
        self.assertLess(rows["without=quiet"]["saving"], 0)
        # Without its root file system a kernel panics.
        self.assertEqual(rows["initcall_blacklist=populate_rootfs"]["verdict"], "fails")
        self.assertIn("status 11: Kernel panic", rows["initcall_blacklist=populate_rootfs"]["failure"])
        self.assertRegex(text, r"slowest init functions(.*\n)+?.* ms")


class CommandLine(unittest.TestCase):
    def test_what_does_not_go_together_is_refused(self):
        for words, said in ((["boot", "--no-try"], "--no-try goes with --explain"),
                            (["boot", "--append", "x"], "--append goes with --explain"),
                            (["start", "--explain"], "--explain is for boot"),
                            (["boot", "--explain"], "--kernel or --config"),
                            (["boot", "--explain", "--kernel", "k", "--qemu", "q"], "takes no --qemu"),
                            (["boot", "--explain", "--kernel", "k", "--try", "a", "--no-try"], "not allowed"),
                            (["boot", "--explain", "--kernel", "k", "--runs", "0"], "at least 1")):
            with self.subTest(words):
                done = subprocess.run([sys.executable, ROOT / "tools/vireo-bench", *words, "--vireo", "/none"],
                                      capture_output=True, check=False)
                self.assertEqual(done.returncode, 2)
                self.assertIn(said, done.stderr.decode())


if __name__ == "__main__":
    unittest.main()
