#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo as a supervisor has it: notification, readiness, limits, signals, and what is left behind."""
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import PROBE, VIREO, reap, run, start  # noqa: E402

ROUNDS = 500 if os.environ.get("VIREO_LONG") else 100


class Notified(unittest.TestCase):
    """A supervisor that speaks sd_notify."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.settimeout(10)

    def start(self, *options, words="probe=echo end=poweroff", address=None, **environment):
        address = address or str(self.directory / "notify")
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        process = start("run", "--kernel", PROBE, "--cmdline", words, *options,
                        env=dict(os.environ, NOTIFY_SOCKET=address, **environment))
        self.addCleanup(reap, process)
        return process

    def received(self, until):
        """Messages up to the first that is `until`."""
        messages = []
        while not messages or messages[-1] != until:
            messages.append(self.socket.recv(4096).decode())
        return messages

    def silent(self, seconds):
        self.socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            return [self.socket.recv(4096).decode()]
        self.socket.settimeout(10)
        return []

    def test_ready_only_when_the_guest_is(self):
        for address in (None, "@vireo-test-" + str(os.getpid())):
            with self.subTest(address):
                self.setUp()
                process = self.start("--ready", "serial:it is up", address=address)
                self.assertEqual(self.received("STATUS=running"), ["STATUS=starting", "STATUS=running"])
                process.stdin.write(b"it is u")
                process.stdin.flush()
                self.assertEqual(self.silent(0.3), [])
                process.stdin.write(b"p")
                process.stdin.flush()
                self.assertEqual(self.received("STATUS=ready"), ["READY=1", "STATUS=ready"])
                process.communicate(b"q", timeout=20)
                self.assertEqual(process.returncode, 0)
                self.assertEqual(self.received("STATUS=the guest powered off"),
                                 ["STOPPING=1", "STATUS=the guest powered off"])

    def test_a_mark_makes_it_ready_and_the_byte_is_written(self):
        reader, writer = os.pipe()
        done = subprocess.run([VIREO, "run", "--kernel", PROBE, "--cmdline", "probe=mark 6 probe=mark 7",
                               "--ready", "mark:7", "--notify", f"fd:{writer}"], pass_fds=[writer],
                              stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
        os.close(writer)
        self.assertEqual((done.returncode, os.read(reader, 10)), (0, b"\n"), done)
        reader2, writer = os.pipe()
        done = subprocess.run([VIREO, "run", "--kernel", PROBE, "--cmdline", "probe=mark 6",
                               "--ready", "mark:7", "--notify", f"fd:{writer}"], pass_fds=[writer],
                              stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
        os.close(writer)
        self.assertEqual((done.returncode, os.read(reader2, 10)), (0, b""), done)
        os.close(reader)
        os.close(reader2)

    def test_not_ready_in_time(self):
        config = self.directory / "vm.toml"
        config.write_text('[ready]\nwhen = "serial:never"\ntimeout = "300ms"\n', encoding="ascii")
        ended = run("run", config, "--kernel", PROBE, "--cmdline", "probe=echo", stdin=None,
                    timeout=30)
        self.assertEqual(ended.status, 13, ended)
        self.assertIn("not ready within 300ms (ready.when, ready.timeout)", ended.errors)

    def test_the_watchdog_is_pinged(self):
        self.start(WATCHDOG_USEC="200000")
        seen = []
        deadline = time.monotonic() + 10
        while seen.count("WATCHDOG=1") < 6 and time.monotonic() < deadline:
            seen.append(self.socket.recv(4096).decode())
        self.assertEqual(seen.count("WATCHDOG=1"), 6, seen)

    def test_the_watchdog_of_another_process_is_not(self):
        self.start(WATCHDOG_USEC="100000", WATCHDOG_PID="1")
        self.received("STATUS=ready")
        self.assertEqual(self.silent(0.5), [])

    def test_a_supervisor_that_is_not_there_is_a_warning(self):
        ended = run("run", "--kernel", PROBE, "--cmdline", "probe=hello end=poweroff",
                    env=dict(os.environ, NOTIFY_SOCKET=str(self.directory / "none")))
        self.assertEqual(ended.status, 0, ended)
        self.assertRegex(ended.errors, "warning supervisor: NOTIFY_SOCKET: .*none: No such file")

    def test_each_end_is_told(self):
        for end, status, text in (("poweroff", 0, "the guest powered off"),
                                  ("reboot", 10, "the guest asked for a reboot"),
                                  ("panic", 11, "the guest panicked"),
                                  ("triple", 12, "the guest crashed")):
            with self.subTest(end):
                self.setUp()
                process = self.start(words=f"probe=hello end={end}")
                process.communicate(timeout=20)
                self.assertEqual(process.returncode, status)
                self.assertEqual(self.received("STATUS=" + text)[-2:], ["STOPPING=1", "STATUS=" + text])


class Restarts(unittest.TestCase):
    """machine.on_reboot = "restart": the process stays, and so does what it was given."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name)

    def restart_twice(self, *options, boot=""):
        (self.path / "vm.toml").write_text(f'[machine]\non_reboot = "restart"\n{boot}', encoding="ascii")
        process = start("run", self.path / "vm.toml", "--kernel", PROBE, "--cmdline", "probe=hello end=reboot",
                        "--control", self.path / "vm.sock", *options)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        for _ in range(3):
            self.assertEqual(process.stdout.readline().strip(), b"probe: hello from CPL 3")
        self.assertEqual(run("ctl", self.path / "vm.sock", "kill").status, 0)
        process.communicate(timeout=20)
        self.assertEqual(process.returncode, 0)

    def test_the_guest_begins_anew(self):
        for cpus in ("1", "3"):
            with self.subTest(cpus):
                self.restart_twice("--cpus", cpus, "--profile", self.path / "profile", "--metrics",
                                   self.path / "metrics")
                self.assertGreaterEqual(json.loads((self.path / "metrics").read_text())["metrics"]["vireo_restarts"], 2)

    def test_a_kernel_that_no_cache_keeps_is_loaded_again(self):
        closed = self.path / "closed"
        closed.mkdir(0o555)
        # In which nobody can make a file.
        for cache in ("/sys/kernel" if os.geteuid() == 0 else closed, "off"):
            with self.subTest(cache):
                self.restart_twice(boot=f'[boot]\ncache = "{cache}"\n')


class Signals(unittest.TestCase):
    def test_metrics_on_sigusr1_and_at_the_end(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "metrics"
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff",
                            "--metrics", path)
            process.stdout.readline()
            self.assertFalse(path.exists())
            process.send_signal(signal.SIGUSR1)
            deadline = time.monotonic() + 10
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            first = json.loads(path.read_text(encoding="ascii"))["metrics"]
            self.assertEqual(first["vireo_ready"], 1)
            process.communicate(b"hello q", timeout=20)
            last = json.loads(path.read_text(encoding="ascii"))["metrics"]
            self.assertGreater(last["vireo_console_bytes"], first["vireo_console_bytes"])
            self.assertEqual(list(pathlib.Path(directory).iterdir()), [path])

    def test_log_files_are_opened_anew_on_sighup(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "log"
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo", "--log-file", path)
            process.stdout.readline()
            path.rename(pathlib.Path(directory) / "log.1")
            process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
            self.assertEqual(process.returncode, 0)
            self.assertIn("second request", path.read_text(encoding="ascii"))

    def test_a_log_that_is_a_pipe_is_opened_anew_too(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "log"
            os.mkfifo(path)
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo", "--log-file", path)
            process.stdout.readline()
            path.rename(pathlib.Path(directory) / "log.1")
            os.mkfifo(path)
            renewed = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                process.send_signal(number)
                time.sleep(0.2)
            process.communicate(timeout=20)
            self.assertEqual(process.returncode, 0)
            self.assertIn(b"second request", os.read(renewed, 10000))
            self.assertNotIn(b"second request", os.read(reader, 10000))
            os.close(reader)
            os.close(renewed)

    def test_an_inherited_pid_file_is_empty_afterwards(self):
        with tempfile.TemporaryFile() as file:
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff", "--pid-file",
                            f"fd:{file.fileno()}", pass_fds=[file.fileno()])
            process.stdout.readline()
            self.assertEqual(int(os.pread(file.fileno(), 100, 0)), process.pid)
            process.communicate(b"q", timeout=20)
            self.assertEqual((process.returncode, os.fstat(file.fileno()).st_size), (0, 0))


class Limits(unittest.TestCase):
    def limited(self, limits, words="probe=hello end=poweroff", **options):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write("[limits]\n" + limits)
            file.flush()
            return run("run", file.name, "--kernel", PROBE, "--cmdline", words, **options)

    def test_affinity_of_each_vcpu(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            cpus = sorted(os.sched_getaffinity(0))[:2]
            both = "-".join(map(str, cpus)) if cpus[-1] - cpus[0] == 1 else ",".join(map(str, cpus))
            file.write(f'[machine]\ncpus = 2\n[limits]\ncpu_affinity = ["{cpus[0]}", "{both}"]\n')
            file.flush()
            process = start("run", file.name, "--kernel", PROBE, "--cmdline", "probe=echo")
            process.stdout.readline()
            masks = {}
            for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
                status = (task / "status").read_text(encoding="ascii")
                masks[re.search(r"Name:\s+(\S+)", status)[1]] = \
                    re.search(r"Cpus_allowed_list:\s+(\S+)", status)[1]
            process.kill()
            process.communicate()
            self.assertEqual((masks["vireo-vcpu0"], masks["vireo-vcpu1"]), (str(cpus[0]), both))

    def test_what_the_host_does_not_give_is_refused_by_name(self):
        for limits, words in (('cpu_affinity = "1000"', "limits.cpu_affinity: vCPU 0: "),
                              ('cpu_affinity = "0,1000"', "limits.cpu_affinity: vCPU 0: "),
                              ('cgroup = "no/such/parent"', "limits.cgroup: "),
                              ('cgroup = "/tmp/x"', "limits.cgroup: ")):
            with self.subTest(limits):
                ended = self.limited(limits)
                self.assertIn(ended.status, (66, 78), ended)
                self.assertTrue(ended.errors.splitlines()[-1].startswith("vireo: " + words), ended)
                self.assertEqual(len(ended.errors.splitlines()), 1, ended)
                self.assertNotIn("hello", ended.output)

    def test_core_scheduling_is_given_or_refused(self):
        ended = self.limited("core_scheduling = true")
        if ended.status != 0:
            self.assertEqual(ended.status, 78, ended)
            self.assertIn("limits.core_scheduling: ", ended.errors)

    def test_rlimits(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write('[limits]\nrlimits = { nofile = "64:128", core = "0" }\n')
            file.flush()
            process = start("run", file.name, "--kernel", PROBE, "--cmdline", "probe=echo")
            process.stdout.readline()
            text = pathlib.Path(f"/proc/{process.pid}/limits").read_text(encoding="ascii")
            process.kill()
            process.communicate()
            self.assertRegex(text, r"Max open files +64 +128 ")
            self.assertRegex(text, r"Max core file size +0 +0 ")
        if os.geteuid() != 0:
            ended = self.limited('rlimits = { nofile = "1:unlimited" }')
            self.assertEqual(ended.status, 77, ended)
            self.assertIn("limits.rlimits.nofile: ", ended.errors)


class Rounds(unittest.TestCase):
    def test_nothing_is_left_after_many_rounds(self):
        """Ended in each way, with all that can be left; then what is there is compared."""
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            for number in range(ROUNDS):
                way, on_socket = number % 5, number // 5 % 2 == 1
                process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff", "--control",
                                directory / "vm.sock", "--pid-file", directory / "pid", "--serial",
                                f"unix,path={directory / 'console'}" if on_socket else "stdio")
                if way != 1 and on_socket:
                    while run("ctl", directory / "vm.sock", "status").status != 0:
                        time.sleep(0.01)
                elif way != 1:
                    process.stdout.readline()
                if way == 0:
                    process.kill()  # the next start clears up
                elif way == 1:  # wherever its start has come to, once it can be told to stop
                    while not sigterm_is_blocked(process.pid):
                        pass
                    process.send_signal(signal.SIGTERM)
                    process.send_signal(signal.SIGINT)
                elif way == 2 and not on_socket:
                    process.stdin.write(b"q")
                elif way in (2, 3):
                    while run("ctl", directory / "vm.sock", "kill").status != 0:
                        time.sleep(0.01)
                else:
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.005)
                    process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)
                left = sorted(path.name for path in directory.iterdir())
                if way == 0:
                    self.assertTrue(set(left) <= {"console", "pid", "vm.sock"}, left)
                else:
                    self.assertEqual(left, [], f"round {number}")
                    self.assertEqual(process.returncode, 0, f"round {number}")
            self.assertEqual(processes_about(name), set())


def sigterm_is_blocked(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"SigBlk:\s+(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1


def processes_about(text):
    """Processes whose command line has `text` in it."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.add(path.parent.name)
    return found


if __name__ == "__main__":
    unittest.main()
