#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The installed units under a real systemd: what it sees of a VM, and what it makes of each end.

Wants root, cgroup v2 and a KVM that runs kernels: the test host has them. VIREO_BINARY is the program
of a release build; the units are those beside it.
"""
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from systemd_machine import SystemdMachine  # noqa: E402
from vireo_process import ARTIFACTS, PROBE, TIMEOUT, VIREO  # noqa: E402

UNITS = pathlib.Path(VIREO).parent / "tools/supervisors"
PROGRAM = "/usr/local/bin/vireo"  # where the build's prefix has it
GUESTS = "/var/lib/guests"
CGROUP = pathlib.Path("/sys/fs/cgroup/machine.slice")
machine = None


def setUpModule():
    global machine
    files = {PROGRAM[1:]: VIREO, f"{GUESTS[1:]}/probe": PROBE,
             f"{GUESTS[1:]}/vmlinuz": f"{ARTIFACTS}/cloud/vmlinuz",
             f"{GUESTS[1:]}/initramfs": f"{ARTIFACTS}/initramfs.cpio"}
    files |= {f"usr/local/lib/systemd/system/{unit}": UNITS / unit
              for unit in ("vireo@.service", "vireo@.socket")}
    machine = SystemdMachine(files)
    machine.enter()


def tearDownModule():
    machine.stop()


def call(*command):
    """(exit status, what it said)"""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=TIMEOUT, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def wait_for(what, seconds=60):
    """The first true value that `what` returns."""
    deadline = time.monotonic() + seconds
    while True:
        value = what()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.05)


class Vm(unittest.TestCase):
    """A test has a VM of its own: an instance of vireo@.service."""

    def setUp(self):
        self.name = self._testMethodName.removeprefix("test_").replace("_", "-")[:40]
        self.unit = f"vireo@{self.name}.service"
        self.control = f"/run/vireo/{self.name}/control.sock"
        self.console = f'[serial]\nmode = "unix"\npath = "/run/vireo/{self.name}/console.sock"'
        self.addCleanup(self.end)

    def end(self):
        call("systemctl", "stop", "--no-warn", f"vireo@{self.name}.socket")
        call("systemctl", "kill", "--signal=KILL", self.unit)
        call("systemctl", "stop", self.unit)

    def describe(self, words, toml="", kernel="probe"):
        """Writes the VM's configuration."""
        pathlib.Path("/etc/vireo").mkdir(exist_ok=True)
        pathlib.Path(f"/etc/vireo/{self.name}.toml").write_text(
            f'[boot]\nkernel = "{GUESTS}/{kernel}"\n{words}\n{toml}', encoding="ascii")

    def probe(self, words, toml=""):
        self.describe(f'cmdline = "{words}"', toml)

    def type_q(self):
        """What a guest waits for that does probe=echo."""
        with socket.socket(socket.AF_UNIX) as terminal:
            terminal.settimeout(60)
            terminal.connect(f"/run/vireo/{self.name}/console.sock")
            said = b""
            while b"echo=ready" not in said:
                said += terminal.recv(4096)
            terminal.sendall(b"q")
            terminal.recv(1)  # echoed: the guest has it

    def drop_in(self, text):
        directory = pathlib.Path(f"/run/systemd/system/{self.unit}.d")
        directory.mkdir(parents=True)
        (directory / "test.conf").write_text(text, encoding="ascii")
        self.assertEqual(call("systemctl", "daemon-reload"), (0, ""))

    def systemctl(self, *words, status=0):
        ended, said = call("systemctl", *words, self.unit)
        self.assertEqual(ended, status, f"{words}: {said}\n{self.journal()}")

    def show(self, *names, unit=None):
        _, said = call("systemctl", "show", unit or self.unit, *(f"--property={name}" for name in names))
        values = dict(line.split("=", 1) for line in said.splitlines())
        return tuple(values[name] for name in names) if len(names) > 1 else values[names[0]]

    def ctl(self, *words, control=None):
        return call(PROGRAM, "ctl", control or self.control, *words)

    def journal(self):
        """What systemd and the VM wrote about it."""
        return call("journalctl", "--unit", self.unit, "--output=short-monotonic", "--no-hostname")[1]

    def assert_said(self, *texts):
        """All of `texts` are in the journal, in this order; it takes lines a moment after they were written."""
        pattern = ".*".join(re.escape(text) for text in texts)
        if not wait_for(lambda: re.search(pattern, self.journal(), re.DOTALL), 10):
            self.fail(f"no {texts} in\n{self.journal()}")

    def assert_nothing_left(self):
        self.assertEqual([path for path in (pathlib.Path("/run/vireo") / self.name, CGROUP / self.unit)
                          if path.exists()], [])


class Units(unittest.TestCase):
    def test_systemd_finds_nothing_wrong_with_them(self):
        self.assertEqual(call("systemd-analyze", "verify", "--man=no", "vireo@web.service", "vireo@web.socket"),
                         (0, ""))


class Readiness(Vm):
    def test_started_when_the_guest_says_so(self):
        self.probe("probe=echo probe=mark 7 probe=button", f'[ready]\nwhen = "mark:7"\n{self.console}')
        self.systemctl("start", "--no-block")
        names = ("ActiveState", "StatusText")
        self.assertTrue(wait_for(lambda: self.show(*names) == ("activating", "running")), self.journal())
        self.type_q()
        self.systemctl("start")
        self.assertEqual(self.show(*names), ("active", "ready"))
        main = pathlib.Path("/proc", self.show("MainPID"))
        self.assertEqual((main / "comm").read_text(encoding="ascii"), "vireo\n")
        status = dict(re.findall(r"^(\w+):\s+(\S+)", (main / "status").read_text(encoding="ascii"), re.M))
        self.assertGreater(int(status["Uid"]), 60000)  # a dynamic user
        self.assertEqual([int(status[key], 16) for key in ("CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")], [0, 0, 1, 2])
        # The user namespace in which it made itself an empty root knows nobody else.
        self.assertEqual((main / "uid_map").read_text(encoding="ascii").split(), [status["Uid"], status["Uid"], "1"])
        self.assertNotIn("warning sandbox", self.journal(), "all of the sandbox is there")
        self.assertEqual(self.ctl("status")[0], 0)

        self.systemctl("stop")
        self.assert_said("Deactivated successfully")
        self.assertNotIn("did not shut down", self.journal(), "it was the guest that ended")
        self.assertEqual(self.show("ActiveState", "Result", "ExecMainStatus"), ("inactive", "success", "0"))
        self.assert_nothing_left()

    def test_not_in_time(self):
        self.probe("probe=button", '[ready]\nwhen = "mark:7"\ntimeout = "500ms"')
        self.systemctl("start", status=1)
        self.assert_said("not ready within 500ms", "status=13")


class Ends(Vm):
    def test_a_guest_that_does_not_hear_its_button(self):
        self.probe("probe=hello end=halt")
        self.systemctl("start")
        began = time.monotonic()
        self.systemctl("stop")
        self.assertGreater(time.monotonic() - began, 9)
        self.assert_said("probe: hello", "the guest did not shut down within 10s")
        self.assertEqual(self.show("ActiveState", "Result", "ExecMainStatus"), ("inactive", "success", "0"))

    def test_a_guest_that_powers_off_stays_off(self):
        self.probe("probe=hello end=poweroff")
        self.systemctl("start")
        self.assertTrue(wait_for(lambda: self.show("ActiveState") == "inactive"))
        self.assertEqual(self.show("Result", "ExecMainStatus", "NRestarts"), ("success", "0", "0"))
        self.assert_nothing_left()

    def test_a_reboot_is_a_new_start_and_no_failure(self):
        self.probe("probe=echo end=reboot", self.console)
        self.systemctl("start")
        first = self.show("MainPID")
        self.type_q()
        self.assertTrue(wait_for(lambda: self.show("NRestarts", "SubState") == ("1", "running")), self.journal())
        self.assertNotEqual(self.show("MainPID"), first)
        self.assert_said("Scheduled restart job")
        self.assertNotIn("Failed with result", self.journal())

    def test_panics_are_restarted_up_to_a_limit(self):
        self.probe("probe=hello end=panic")
        self.systemctl("start")
        self.assertTrue(wait_for(lambda: self.show("ActiveState") == "failed"), self.journal())
        self.assertEqual(self.show("ExecMainStatus", "NRestarts"), ("11", "5"))
        self.assert_said(*5 * ["status=11"], "Start request repeated too quickly")

    def test_what_a_restart_cannot_mend_is_not_restarted(self):
        self.probe("probe=hello", "[machine]\ncolour = 3")
        self.systemctl("start", status=1)
        self.assertEqual(self.show("ActiveState", "Result", "ExecMainStatus", "NRestarts"),
                         ("failed", "exit-code", "78", "0"))
        self.assert_said("machine.colour", "status=78")
        self.describe("", kernel="none")
        self.systemctl("start", status=1)
        self.assertEqual(self.show("ActiveState", "ExecMainStatus", "NRestarts"), ("failed", "66", "0"))

    def test_killed_with_all_that_it_may_leave(self):
        home = pathlib.Path("/var/lib/vireo") / self.name
        group = CGROUP / self.unit / "vm"
        self.probe("probe=button", f'[process]\npid_file = "vm.pid"\n[serial]\nmode = "unix"\npath = "console.sock"\n'
                   f'[limits]\ncgroup = "machine.slice/{self.unit}/vm"\nmemory_max = "300M"\ncpu_quota = "150%"\n'
                   f'pids_max = 50')
        self.systemctl("start")
        for restarts in range(3):
            main = self.show("MainPID")
            self.assertEqual((home / "vm.pid").read_text(encoding="ascii"), main + "\n")
            self.assertTrue((home / "console.sock").is_socket())
            # By a program: this process would see the pids of outside.
            self.assertIn(main, call("cat", group / "cgroup.procs")[1].split())
            self.assertEqual([(group / file).read_text(encoding="ascii").strip()
                              for file in ("memory.max", "cpu.max", "pids.max")],
                             [str(300 << 20), "150000 100000", "50"])
            if restarts < 2:
                self.assertEqual(call("kill", "-KILL", main), (0, ""))
                self.assertTrue(wait_for(lambda: self.show("NRestarts", "ActiveState", "SubState") ==
                                         (str(restarts + 1), "active", "running")), self.journal())
        self.assert_said(*2 * ["code=killed, status=9/KILL", "Failed with result 'signal'", "Scheduled restart job"])
        self.systemctl("stop")
        self.assertEqual(self.show("Result", "ExecMainStatus"), ("success", "0"))
        self.assertEqual(list(home.iterdir()), [])
        self.assert_nothing_left()

    def test_a_cgroup_of_its_own_is_left_without_help(self):
        # As any supervisor has it that delegates a cgroup: nobody clears up behind vireo here.
        slice_ = CGROUP.parent / "by-hand.slice"
        (slice_ / "vm").mkdir(parents=True)
        self.addCleanup(lambda: [path.rmdir() for path in (slice_ / "vm", slice_)])
        for directory in (CGROUP.parent, slice_):
            (directory / "cgroup.subtree_control").write_text("+cpu +io +memory +pids", encoding="ascii")
        disk = next(pathlib.Path("/sys/block").glob("*/dev")).read_text(encoding="ascii").strip()
        self.probe("probe=mark 7 probe=button", '[limits]\ncgroup = "by-hand.slice/vm/inner"\nmemory_max = "300M"\n'
                   f'pids_max = 50\ncpu_weight = 250\nio_max = "{disk} wiops=100 rbps=1048576"\n'
                   f'[control]\npath = "/run/{self.name}.sock"\n[ready]\nwhen = "mark:7"')
        script = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        with subprocess.Popen(["sh", "-c", script, slice_ / "vm", PROGRAM, "run", f"/etc/vireo/{self.name}.toml"],
                              stdin=subprocess.DEVNULL) as vm:
            self.assertTrue(wait_for(lambda: '"ready":true' in self.ctl("status", "--json", control=f"/run/{self.name}.sock")[1]))
            self.assertEqual([(slice_ / "vm/inner" / file).read_text(encoding="ascii").strip()
                              for file in ("memory.max", "pids.max", "cpu.weight", "io.max")],
                             [str(300 << 20), "50", "250", f"{disk} rbps=1048576 wbps=max riops=max wiops=100"])
            vm.terminate()
        self.assertEqual(vm.returncode, 0)
        self.assertFalse((slice_ / "vm/inner").exists())
        self.assertEqual((slice_ / "vm/cgroup.subtree_control").read_text(encoding="ascii").strip(), "")

    def test_one_that_stands_still_is_found_by_the_watchdog(self):
        self.drop_in("[Service]\nWatchdogSec=3\n")
        self.probe("probe=button")
        self.systemctl("start")
        self.assertEqual(call("kill", "-STOP", self.show("MainPID")), (0, ""))
        self.assertTrue(wait_for(lambda: self.show("NRestarts") != "0" and self.show("SubState") == "running"),
                        self.journal())
        self.assert_said("Watchdog timeout", "Failed with result 'watchdog'", "Scheduled restart job")
        # Pinged again; or one that comes after it, where the test host itself stood still.
        names = ("MainPID", "WatchdogTimestampMonotonic")
        first = self.show(*names)
        self.assertTrue(wait_for(lambda: self.show(*names) != first), self.journal())
        self.systemctl("stop")
        self.assertEqual(self.show("Result"), "success")


class Reload(Vm):
    def test_the_log_is_opened_anew(self):
        log = pathlib.Path(f"/var/log/vireo/{self.name}/vm.log")
        self.probe("probe=button", f'[log]\nfile = "{log}"')
        self.systemctl("start")
        log.rename(log.with_suffix(".1"))
        self.systemctl("reload")
        self.assertTrue(wait_for(log.exists))
        self.assertEqual(self.ctl("kill"), (0, ""))
        self.assertIn("killed by request", log.read_text(encoding="ascii"))


class Activation(Vm):
    def setUp(self):
        super().setUp()
        self.socket = f"vireo@{self.name}.socket"
        self.control = f"/run/vireo/{self.name}.sock"

    def listen(self):
        self.assertEqual(call("systemctl", "start", self.socket), (0, ""))
        self.assertEqual(self.show("ActiveState"), "inactive")

    def test_the_first_request_starts_the_vm(self):
        self.probe("probe=button")
        self.listen()
        status = os.stat(self.control)
        self.assertEqual((status.st_uid, status.st_mode & 0o777), (0, 0o600))
        for _ in range(2):
            ended, said = self.ctl("status", "--json")
            self.assertEqual(ended, 0, said)
            self.assertEqual(str(json.loads(said)["pid"]), self.show("MainPID"))
            self.assertEqual(self.show("ActiveState"), "active")
            self.assertEqual(self.ctl("stop"), (0, ""))
            self.assertTrue(wait_for(lambda: self.show("ActiveState") == "inactive"), self.journal())
            self.assertEqual(self.show("ActiveState", "SubState", unit=self.socket), ("active", "listening"))
        self.assertEqual(os.stat(self.control).st_ino, status.st_ino)
        self.assertNotIn("Failed with result", self.journal())

        self.assertEqual(call("systemctl", "stop", self.socket), (0, ""))
        self.assertEqual([path for path in os.listdir("/run/vireo") if path.startswith(self.name)], [])
        self.assertEqual(self.ctl("status")[0], 69)
        self.systemctl("start")
        self.assertEqual(self.ctl("status", control=f"/run/vireo/{self.name}/control.sock")[0], 0)

    def test_requests_wait_while_the_vm_restarts(self):
        self.probe("probe=button")
        self.listen()
        first = json.loads(self.ctl("status", "--json")[1])["pid"]
        self.assertEqual(call("kill", "-KILL", first), (0, ""))
        ended, said = self.ctl("status", "--json")
        self.assertEqual(ended, 0, said)
        self.assertNotEqual(json.loads(said)["pid"], first)

    def test_a_request_to_a_vm_that_cannot_start_is_not_left_waiting(self):
        self.probe("probe=hello", "[machine]\ncolour = 3")
        self.listen()
        self.assertEqual(self.ctl("status")[0], 69)
        self.assertTrue(wait_for(lambda: self.show("ActiveState") == "failed"))


class Linux(Vm):
    def test_started_and_stopped(self):
        self.describe(f'initramfs = "{GUESTS}/initramfs"\nappend = "quiet vireo.do=wait"',
                      '[ready]\nwhen = "serial:wait: ready"\ntimeout = "300s"', kernel="vmlinuz")
        self.systemctl("start")
        self.assertEqual(self.show("ActiveState", "StatusText"), ("active", "ready"))
        self.assert_said("wait: ready")
        self.systemctl("stop")
        self.assert_said("reboot: Power down", "Deactivated successfully")
        self.assertEqual(self.show("Result", "ExecMainStatus"), ("success", "0"))
        self.assertNotEqual(list(pathlib.Path(f"/var/cache/vireo/{self.name}/vireo").iterdir()), [])


if __name__ == "__main__":
    unittest.main()
