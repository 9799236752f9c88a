#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo with the probe as its guest: on any KVM, one that interprets kernel code included."""
import ctypes
import fcntl
import json
import os
import pathlib
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import PROBE, VIREO, run, start  # noqa: E402


def probe(words, *options, **keywords):
    return run("run", "--kernel", PROBE, "--memory", "64M", "--cmdline", words, *options, **keywords)


class Endings(unittest.TestCase):
    def test_each_end_has_its_status(self):
        for end, status in (("poweroff", 0), ("reboot", 10), ("panic", 11), ("triple", 12)):
            with self.subTest(end):
                ended = probe(f"probe=hello end={end}")
                self.assertEqual(ended.status, status, ended)
                self.assertIn("probe: hello", ended.output)

    def test_two_signals_end_it_at_once_and_orderly(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=hello end=halt")
            self.assertIn(b"probe: hello", process.stdout.readline())
            process.send_signal(number)
            time.sleep(0.2)
            self.assertIsNone(process.poll(), "the first signal is only the power button")
            process.send_signal(number)
            _, errors = process.communicate(timeout=20)
            self.assertEqual(process.returncode, 0, errors)
            self.assertIn(b"second request", errors)

    def test_the_first_signal_presses_the_power_button(self):
        process = start("run", "--kernel", PROBE, "--cmdline", "probe=button end=poweroff")
        self.assertIn(b"button=ready", process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 0, output + errors)
        self.assertNotIn(b"second request", errors)


class Interrupts(unittest.TestCase):
    def test_apic_timer_and_serial_interrupts(self):
        ended = probe("probe=irq 20 end=poweroff")
        self.assertEqual(ended.status, 0, ended)

    def test_serial_input_by_polling_and_by_interrupt(self):
        for test, ready in (("echo", b"echo=ready"), ("serial-irq", b"serial_irq=ready")):
            with self.subTest(test):
                process = start("run", "--kernel", PROBE, "--cmdline", f"probe={test} end=poweroff")
                self.assertIn(ready, process.stdout.readline())
                text = b"all of this comes back, longer than any FIFO of sixteen bytes is"
                output, errors = process.communicate(text + b"q", timeout=30)
                self.assertEqual(process.returncode, 0, output + errors)
                self.assertIn(text, output)

    def test_eight_processors_do_not_disturb_one_that_works(self):
        self.assertEqual(probe("probe=hello end=poweroff", "--cpus", "8").status, 0)


class Consoles(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.path = pathlib.Path(self.directory.name)

    def test_file(self):
        log = self.path / "console.log"
        log.write_text("before\n")
        self.assertEqual(probe("probe=hello", "--serial", f"file,path={log},append").status, 0)
        self.assertTrue(log.read_text().startswith("before\n"))
        self.assertIn("probe: hello", log.read_text())
        self.assertEqual(probe("probe=hello", "--serial", f"file,path={log}").status, 0)
        self.assertNotIn("before", log.read_text())

    def test_null(self):
        ended = probe("probe=hello end=reboot", "--serial", "null")
        self.assertEqual((ended.status, ended.output), (10, ""))

    def test_unix_socket_is_made_served_and_removed(self):
        path = self.path / "console.sock"
        # One that a killed process left behind is replaced.
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff", "--serial",
                        f"unix,path={path}")
        client = socket.socket(socket.AF_UNIX)
        for _ in range(200):
            try:
                client.connect(str(path))
                break
            except OSError:
                time.sleep(0.05)
        client.settimeout(20)
        self.addCleanup(client.close)
        second = run("run", "--kernel", PROBE, "--serial", f"unix,path={path}")
        self.assertEqual(second.status, 78, second)
        self.assertIn("in use", second.errors)
        self.assertTrue(client.recv(100).startswith(b"probe: "))
        client.sendall(b"helloq")
        received = b""
        while chunk := client.recv(100):
            received += chunk
        self.assertIn(b"hello", received)
        process.communicate(timeout=20)
        self.assertEqual(process.returncode, 0)
        self.assertFalse(path.exists())

    def on_a_terminal(self):
        """The guest has said something; (process, our side of the terminal, its side, its first settings)."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        before = termios.tcgetattr(slave)

        def controlling():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        process = subprocess.Popen(
            [VIREO, "run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff"],
            stdin=slave, stdout=slave, stderr=slave, preexec_fn=controlling)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        said = b""
        while b"probe: " not in said:
            said += os.read(master, 1000)
            self.assertTrue(b"probe: ".startswith(said[:7]), said)
        self.assertFalse(termios.tcgetattr(slave)[3] & termios.ECHO)
        return process, master, slave, before

    def test_terminal_is_raw_while_the_guest_has_it_and_restored_after(self):
        for how in ("escape", "vireo", "vireo-vcpu0"):
            with self.subTest(how):
                process, master, slave, before = self.on_a_terminal()
                if how == "escape":
                    os.write(master, b"\x01x")
                    self.assertEqual(process.wait(20), 0)
                else:  # a fault on this thread
                    thread = next(task for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir()
                                  if (task / "comm").read_text().strip() == how)
                    ctypes.CDLL(None).tgkill(process.pid, int(thread.name), signal.SIGABRT)
                    self.assertEqual(process.wait(20), -signal.SIGABRT)
                self.assertEqual(termios.tcgetattr(slave), before)

    def test_terminal_is_raw_again_after_job_control(self):
        process, master, slave, before = self.on_a_terminal()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        termios.tcsetattr(slave, termios.TCSANOW, before)  # as a shell does
        process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 20
        while termios.tcgetattr(slave)[3] & termios.ECHO and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertFalse(termios.tcgetattr(slave)[3] & termios.ECHO)
        os.write(master, b"\x01x")
        self.assertEqual(process.wait(20), 0)
        self.assertEqual(termios.tcgetattr(slave), before)

    def test_a_reader_that_stops_does_not_stop_the_guest(self):
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [VIREO, "run", "--kernel", PROBE, "--cmdline", "probe=hello end=poweroff"],
            stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        process.communicate(timeout=20)
        self.assertEqual(process.returncode, 0)
        os.close(reader)

    def test_closed_standard_descriptors(self):
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            with self.subTest(closed):
                script = f'"$0" run --kernel "$1" --cmdline "probe=hello" {closed}'
                done = subprocess.run(["sh", "-c", script, VIREO, PROBE], timeout=30, check=False,
                                      capture_output=True)
                self.assertEqual(done.returncode, 0, done)


class Reports(unittest.TestCase):
    def test_timeline_profile_pid_file_and_json_log(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory)
            ended = probe("probe=mark 7 probe=hello", "--timeline", path / "t.json", "--profile",
                          path / "p.json", "--pid-file", path / "pid", "--name", "web-1",
                          "--log-format", "json", "--log-level", "debug", "--log-file",
                          path / "log")
            self.assertEqual(ended.status, 0, ended)
            timeline = json.loads((path / "t.json").read_text())
            names = [step["name"] for step in timeline["steps"]]
            for name in ("process_start", "config_parsed", "kvm_ready", "memory_ready",
                         "kernel_loaded", "devices_ready", "first_entry", "guest_mark:7", "ready",
                         "end"):
                self.assertIn(name, names)
            times = [step["at_us"] for step in timeline["steps"]]
            self.assertEqual(times, sorted(times))
            profile = json.loads((path / "p.json").read_text())
            exits = profile["vcpus"][0]["exits"]
            self.assertTrue(any(e.get("device") == "serial" and e["direction"] == "write" and
                                e["count"] >= 12 for e in exits), exits)
            self.assertTrue(any(e.get("address") == "0x3f0" for e in exits), exits)
            # What KVM answered by itself is counted by KVM: more exits than came out to vireo.
            seen = sum(e["count"] for e in exits)
            self.assertGreaterEqual(profile["vcpus"][0]["kvm"]["exits"], seen, profile["vcpus"][0])
            phases = profile["phases"]
            # Mark 1 is the probe's own, 7 the test's, and the last phase ends with the run.
            self.assertEqual([phase["phase"] for phase in phases], [0, 1, 2])
            self.assertGreater(phases[0]["pages_touched"], 8)
            self.assertEqual(profile["guest_steps"], [])
            for line in (path / "log").read_text().splitlines():
                self.assertEqual(json.loads(line)["vm"], "web-1")
            self.assertFalse((path / "pid").exists())
            self.assertEqual(sorted(p.name for p in path.iterdir()), ["log", "p.json", "t.json"])

    def test_a_report_replaces_a_file_and_is_written_to_what_is_none(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory)
            (path / "old").write_text("old")
            os.link(path / "old", path / "t.json")
            os.mkfifo(path / "fifo")
            reader = os.open(path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
            ended = probe("probe=hello", "--timeline", path / "t.json", "--profile", path / "fifo")
            self.assertEqual(ended.status, 0, ended)
            self.assertEqual((path / "old").read_text(), "old")
            self.assertIn("steps", json.loads((path / "t.json").read_text()))
            profile = os.read(reader, 65536)
            os.close(reader)
            self.assertIn("vcpus", json.loads(profile))
            # Nobody reads: that is found before the VM starts.
            ended = probe("probe=hello", "--timeline", path / "fifo")
            self.assertEqual(ended.status, 71, ended)
            self.assertNotIn("probe: hello", ended.output)
            self.assertRegex(ended.errors, "^vireo: process.timeline: .*fifo: No such device")
            with open(path / "handed", "wb") as handed:
                ended = probe("probe=hello", "--timeline", f"fd:{handed.fileno()}",
                              pass_fds=[handed.fileno()])
            self.assertEqual(ended.status, 0, ended)
            self.assertIn("steps", json.loads((path / "handed").read_text()))
            self.assertEqual(sorted(p.name for p in path.iterdir()), ["fifo", "handed", "old", "t.json"])
            ended = probe("probe=hello", "--profile", "/dev/full")
            self.assertEqual(ended.status, 71, ended)
            self.assertRegex(ended.errors, "^vireo: process.profile: /dev/full: .*No space left")
            self.assertTrue(pathlib.Path("/dev/full").is_char_device())
            # A directory that does not take the file when the VM has ended.
            (path / "gone").mkdir()
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo", "--timeline",
                            path / "gone/t.json")
            self.assertIn(b"echo=ready", process.stdout.readline())
            (path / "gone").rmdir()
            _, errors = process.communicate(b"q", timeout=20)
            self.assertEqual(process.returncode, 66, errors)
            self.assertIn(b"process.timeline: ", errors)

    def test_profile_shows_the_guests_own_steps(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "p.json"
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo", "--profile", path)
            self.assertIn(b"echo=ready", process.stdout.readline())
            line = b"initcall acpi_init+0x0/0x4d0 returned 0 after 76000 usecs\n"
            output, errors = process.communicate(line + b"q", timeout=20)
            self.assertEqual(process.returncode, 0, errors)
            self.assertIn(line.strip(), output)
            self.assertEqual(json.loads(path.read_text())["guest_steps"],
                             [{"name": "acpi_init", "duration_us": 76000}])

    def test_profile_shows_how_much_memory_each_phase_touched(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "p.json"
            ended = probe("probe=mark 2 probe=touch 16 probe=mark 3", "--profile", path)
            self.assertEqual(ended.status, 0, ended)
            touched = [phase["pages_touched"] for phase in json.loads(path.read_text())["phases"]]
            self.assertGreaterEqual(touched[2], 16 * 256, touched)
            self.assertLess(touched[3], 16 * 256, touched)

    def test_pid_file_names_the_process_and_a_live_one_is_respected(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "pid"
            path.write_text("999999\n")  # left by a process that was killed
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff",
                            "--pid-file", path)
            process.stdout.readline()
            self.assertEqual(int(path.read_text()), process.pid)
            second = probe("probe=hello", "--pid-file", path)
            self.assertEqual(second.status, 71, second)
            self.assertIn(str(process.pid), second.errors)
            process.communicate(b"q", timeout=20)
            self.assertFalse(path.exists())

    def test_boot_timer(self):
        ended = probe("probe=boot-timer", "--boot-timer")
        self.assertRegex(ended.errors, r"Guest-boot-time = +\d+ us \d+ ms, +\d+ CPU us \d+ CPU ms")


if __name__ == "__main__":
    unittest.main()
