#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The installed job for Nomad, read by an HCL parser and run by a stand-in for Nomad's client.

The stand-in does what Nomad documents of raw_exec, of task directories and interpolation, of kill_signal
and of the restart block; the job is used as it is, but for the values of meta.
"""
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import PROBE, VIREO, run  # noqa: E402

JOB = pathlib.Path(VIREO).parent / "tools/supervisors/vireo.nomad.hcl"
INSTALLED = "/usr/local/bin/vireo"  # where the build's prefix has it
UNITS = {"s": 1, "m": 60, "h": 3600}


def only(block):
    """The one (label, body) of a block."""
    (label, body), = block.items()
    return label, body


def seconds(duration):
    return int(duration[:-1]) * UNITS[duration[-1]]


class Allocation:
    """One task of a job in a directory of its own, as Nomad's client has it."""

    def __init__(self, job, directory, **meta):
        parsed = json.loads(subprocess.run(["hcltool", job], check=True, stdout=subprocess.PIPE).stdout)
        self.job_name, self.job = only(parsed["job"])
        self.group_name, self.group = only(self.job["group"])
        self.task_name, self.task = only(self.group["task"])
        self.task["meta"] |= meta
        self.directory = directory
        self.task_directory = directory / self.task_name
        for path in ("alloc/data", "alloc/logs", "alloc/tmp", f"{self.task_name}/local",
                     f"{self.task_name}/secrets", f"{self.task_name}/tmp"):
            (directory / path).mkdir(parents=True)
        template = self.task["template"]
        assert "{{" not in template["data"], "this stand-in renders no templates"
        (self.task_directory / template["destination"]).write_text(template["data"] + "\n", encoding="ascii")
        self.environment = {"PATH": os.environ["PATH"], "NOMAD_JOB_NAME": self.job_name,
                            "NOMAD_GROUP_NAME": self.group_name, "NOMAD_TASK_NAME": self.task_name,
                            "NOMAD_ALLOC_DIR": str(directory / "alloc"),
                            "NOMAD_TASK_DIR": str(self.task_directory / "local"),
                            "NOMAD_SECRETS_DIR": str(self.task_directory / "secrets")}
        self.environment |= {f"NOMAD_META_{key}": value for key, value in self.task["meta"].items()}
        self.process = None

    def interpolated(self, text):
        return re.sub(r"\$\{(\w+)\}", lambda found: self.environment[found[1]], text)

    def start(self):
        """A process group of its own, in the task's directory; its output goes to the allocation's logs."""
        config = self.task["config"]
        assert config["command"] == INSTALLED, config
        logs = self.directory / "alloc/logs"
        with open(logs / f"{self.task_name}.stdout.0", "ab") as output, \
                open(logs / f"{self.task_name}.stderr.0", "ab") as errors:
            self.process = subprocess.Popen([VIREO, *map(self.interpolated, config["args"])], env=self.environment,
                                            cwd=self.task_directory, stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=errors, preexec_fn=os.setpgrp)

    def stop(self):
        """What `nomad job stop` does; the exit status."""
        self.process.send_signal(getattr(signal, self.task["kill_signal"]))
        try:
            return self.process.wait(seconds(self.task["kill_timeout"]))
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def run(self):
        """The exit statuses of the task, started again as its restart block says. Time is ten times faster."""
        policy = self.group["restart"]
        assert policy["mode"] == "fail"
        statuses, interval_began = [], time.monotonic()
        while True:
            self.start()
            statuses.append(self.process.wait(60))
            if statuses[-1] == 0 and self.job["type"] == "batch":
                return statuses
            assert time.monotonic() - interval_began < seconds(policy["interval"])
            if len(statuses) > policy["attempts"]:
                return statuses
            time.sleep(seconds(policy["delay"]) / 10)


class Nomad(unittest.TestCase):
    def allocate(self, words, **changes):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = pathlib.Path(directory.name)
        (path / "initramfs").write_bytes(b"none")
        allocation = Allocation(JOB, path / "allocation", kernel=PROBE, initramfs=str(path / "initramfs"), append=words)
        allocation.job |= changes
        self.addCleanup(lambda: allocation.process and allocation.kill())
        return allocation

    def status(self, allocation):
        """The VM's status, once it has one."""
        deadline = time.monotonic() + 30
        while True:
            ended = run("ctl", allocation.task_directory / "local/control.sock", "status", "--json")
            if ended.status == 0:
                return json.loads(ended.output)
            self.assertLess(time.monotonic(), deadline, ended)
            time.sleep(0.05)

    def test_what_it_asks_of_nomad(self):
        allocation = self.allocate("probe=hello")
        task = allocation.task
        self.assertEqual((task["driver"], sorted(task["config"])), ("raw_exec", ["args", "command"]))
        self.assertGreater(seconds(task["kill_timeout"]), 10 + 5)
        self.assertEqual(task["resources"]["memory"], int(task["meta"]["memory"].removesuffix("M")) + 64)

    def test_an_orderly_stop(self):
        allocation = self.allocate("probe=button")
        allocation.start()
        status = self.status(allocation)
        self.assertEqual((status["name"], status["pid"]), ("web", allocation.process.pid))
        logs = allocation.directory / "alloc/logs"
        while b"button=ready" not in (logs / "vm.stdout.0").read_bytes():
            time.sleep(0.02)
        self.assertEqual(allocation.stop(), 0)
        self.assertIn(b"button=pressed", (logs / "vm.stdout.0").read_bytes())
        self.assertNotIn(b"did not shut down", (logs / "vm.stderr.0").read_bytes())
        self.assertEqual(os.listdir(allocation.task_directory / "local"), ["vm.toml"])

    def test_each_end_is_started_anew_up_to_a_limit(self):
        for end, status in (("reboot", 10), ("panic", 11), ("triple", 12), ("poweroff", 0)):
            with self.subTest(end):
                self.assertEqual(self.allocate(f"probe=hello end={end}").run(), 6 * [status])

    def test_a_batch_job_ends_with_the_guest(self):
        self.assertEqual(self.allocate("probe=hello end=poweroff", type="batch").run(), [0])

    def test_a_killed_one_leaves_nothing_in_the_way(self):
        allocation = self.allocate("probe=button")
        for _ in range(3):
            allocation.start()
            self.assertEqual(self.status(allocation)["pid"], allocation.process.pid)
            allocation.kill()
            self.assertEqual(allocation.process.wait(), -signal.SIGKILL)


if __name__ == "__main__":
    unittest.main()
