#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The test host itself: what it promises in its first lines is what the suites that run in it rely on."""
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEST_HOST = str(ROOT / "tools/test-host")
ARTIFACTS = pathlib.Path(os.environ.get("VIREO_ARTIFACTS", ROOT / "artifacts"))
FIRST, SECOND = "selftest-1", "selftest-2"
ALL_BYTES = bytes(range(256)) * 4096


def call(verb, *words, name=FIRST, options=(), **keywords):
    command = [TEST_HOST, verb, "--name", name, *options]
    return subprocess.run([*command, "--", *words] if words else command, capture_output=True,
                          stdin=subprocess.DEVNULL, check=False, timeout=400, **keywords)


def begin(*words, name=FIRST, options=()):
    return subprocess.Popen([TEST_HOST, "exec", "--name", name, *options, "--", *words],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def boot_id(name=FIRST):
    """Tells one boot of a host from the next; starts the host if need be."""
    done = call("exec", "cat", "/proc/sys/kernel/random/boot_id", name=name)
    return done.stdout.decode().strip() if done.returncode == 0 else f"failed: {done}"


def emulator(name=FIRST):
    return int((ARTIFACTS / f"host-{name}/pid").read_text(encoding="ascii").split()[0])


def tearDownModule():
    for name in (FIRST, SECOND):
        call("stop", name=name)


class Commands(unittest.TestCase):
    def test_exit_statuses(self):
        for script, status in (("exit 0", 0), ("exit 1", 1), ("exit 77", 77), ("exit 124", 124),
                               ("exit 255", 255), ("kill -KILL $$", 137), ("kill -TERM $$", 143)):
            with self.subTest(script):
                done = call("exec", "sh", "-c", script)
                self.assertEqual((done.returncode, done.stdout, done.stderr), (status, b"", b""))

    def test_a_command_that_cannot_be_started(self):
        for command, status in (("/no/such/program", 127), ("/etc", 126)):
            done = call("exec", command)
            self.assertEqual(done.returncode, status)
            self.assertIn(command.encode(), done.stderr)
        with tempfile.TemporaryDirectory() as hidden:  # the host has a /tmp of its own
            done = call("exec", "true", cwd=hidden)
            self.assertEqual(done.returncode, 127)
            self.assertIn(hidden.encode(), done.stderr)

    def test_output_and_errors_come_apart_and_byte_for_byte(self):
        script = ("import os, sys; a = bytes(range(256)) * 4096; sys.stdout.buffer.write(a);"
                  "sys.stderr.buffer.write(a[::-1]); sys.stdout.buffer.write(b'end')")
        done = call("exec", sys.executable, "-c", script)
        self.assertEqual(done.returncode, 0)
        self.assertTrue(done.stdout == ALL_BYTES + b"end", len(done.stdout))
        self.assertTrue(done.stderr == ALL_BYTES[::-1], len(done.stderr))

    def test_arguments_directory_and_environment(self):
        words = ["printf", "%s|", "a b", "", "--", "$HOME", "line\nline", "ä"]
        self.assertEqual(call("exec", *words).stdout.decode(), "a b||--|$HOME|line\nline|ä|")
        done = call("exec", "sh", "-c", "pwd; echo $VIREO_IN_TEST_HOST $VIREO_WORD $OTHER", cwd=ROOT,
                    env=dict(os.environ, VIREO_WORD="word", OTHER="no"))
        self.assertEqual(done.stdout.decode(), f"{ROOT}\n1 word\n")

    def test_what_a_command_leaves_running_ends_with_it(self):
        began = time.monotonic()
        done = call("exec", "sh", "-c", "sleep 3217 & echo started")
        self.assertEqual((done.returncode, done.stdout), (0, b"started\n"))
        self.assertLess(time.monotonic() - began, 60)
        self.assertEqual(call("exec", "pgrep", "-f", "[s]leep 3217").returncode, 1)

    def test_pushed_files_have_their_present_content(self):
        # Below a directory that the host sees, as builds are.
        with tempfile.NamedTemporaryFile(dir=ARTIFACTS, prefix=".selftest-") as file:
            for text in (b"one", b"another"):
                pathlib.Path(file.name).write_bytes(text)
                done = call("exec", "cat", file.name, options=["--push", file.name])
                self.assertEqual(done.stdout, text, done)

    def test_a_terminal(self):
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        script = "test -t 0 && stty size && echo ready && read line && echo \"got $line\"; exit 5"
        process = subprocess.Popen([TEST_HOST, "exec", "--name", FIRST, "--tty", "--", "sh", "-c", script],
                                   stdin=slave, stdout=slave, stderr=slave)
        seen = b""
        while b"ready" not in seen:
            seen += os.read(master, 1000)
        self.assertFalse(termios.tcgetattr(slave)[3] & termios.ECHO)
        os.write(master, b"hello\r")
        while b"got hello" not in seen:
            seen += os.read(master, 1000)
        self.assertEqual(process.wait(60), 5)
        self.assertEqual(termios.tcgetattr(slave), before)
        os.close(master)
        os.close(slave)

    def test_a_terminal_is_asked_for_without_one(self):
        done = call("exec", "true", options=["--tty"])
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"no terminal", done.stderr)


class Hosts(unittest.TestCase):
    def test_start_does_nothing_where_the_host_is_up(self):
        self.assertEqual(call("start").returncode, 0)
        first, process = boot_id(), emulator()
        self.assertEqual(call("start").returncode, 0)
        self.assertEqual((boot_id(), emulator()), (first, process))

    def test_two_starts_at_once_give_one_host(self):
        call("stop")
        starts = [subprocess.Popen([TEST_HOST, "start", "--name", FIRST]) for _ in range(2)]
        self.assertEqual([start.wait(300) for start in starts], [0, 0])
        serial = f"file:{(ARTIFACTS / f'host-{FIRST}').resolve()}/serial.log"
        found = subprocess.run(["pgrep", "-f", serial], capture_output=True, check=False).stdout.split()
        self.assertEqual(found, [str(emulator()).encode()])

    def test_two_hosts_do_not_disturb_each_other(self):
        ids = boot_id(FIRST), boot_id(SECOND)
        self.assertNotEqual(*ids)
        waiting = begin("sh", "-c", "echo first >/tmp/mine; sleep 5; cat /tmp/mine; exit 3")
        for number in range(5):
            done = call("exec", "sh", "-c", f"test ! -e /tmp/mine && echo {number}", name=SECOND)
            self.assertEqual((done.returncode, done.stdout), (0, f"{number}\n".encode()))
        self.assertIsNone(waiting.poll())
        self.assertEqual(call("stop", name=SECOND).returncode, 0)
        self.assertEqual(waiting.communicate(timeout=100), (b"first\n", b""))
        self.assertEqual(waiting.returncode, 3)
        self.assertEqual(boot_id(FIRST), ids[0])

    def test_commands_for_one_host_wait_for_each_other(self):
        started = [begin("sh", "-c", f"mkdir /tmp/turn && sleep 1 && rmdir /tmp/turn && echo {number}")
                   for number in range(3)]
        ended = [process.communicate(timeout=200) for process in started]
        self.assertEqual(ended, [(f"{number}\n".encode(), b"") for number in range(3)])

    def test_nothing_written_escapes(self):
        path = ROOT / ".selftest-written"
        done = call("exec", "sh", "-c", f"echo x >{path} && cat {path}")
        self.assertEqual((done.returncode, done.stdout), (0, b"x\n"))
        self.assertFalse(path.exists())

    def test_run_stops_its_host(self):
        done = call("run", "sh", "-c", "echo out; exit 9", name=SECOND)
        self.assertEqual((done.returncode, done.stdout), (9, b"out\n"))
        self.assertFalse((ARTIFACTS / f"host-{SECOND}/pid").exists())


class Failures(unittest.TestCase):
    def check(self, done, before, status, *words):
        """It is reported, and the next command runs on a fresh host."""
        self.assertEqual(done.returncode, status, done)
        for word in (b"serial.log ends", *words):
            self.assertIn(word, done.stderr)
        self.assertRegex(after := boot_id(), "^[0-9a-f-]{36}$")
        self.assertNotEqual(before, after)

    def test_a_command_that_hangs(self):
        before = boot_id()
        done = call("exec", "sh", "-c", "echo begun; exec sleep 1000", options=["--timeout", "3"])
        self.assertEqual(done.stdout, b"begun\n")
        self.check(done, before, 124, b"not over within 3 s", b"runs sh -c echo begun", b"not over in time",
                   b"sleep: state S")

    def test_a_host_that_hangs(self):
        before = boot_id()
        waiting = begin("sh", "-c", "echo begun; exec sleep 1000", options=["--silence", "10"])
        self.assertEqual(waiting.stdout.readline(), b"begun\n")
        os.kill(emulator(), signal.SIGSTOP)
        _, errors = waiting.communicate(timeout=100)
        self.check(subprocess.CompletedProcess([], waiting.returncode, b"", errors), before, 125,
                   b"nothing was heard of it for 10 s")

    def test_a_quiet_command_is_no_hang(self):
        self.assertEqual(call("exec", "sleep", "14", options=["--silence", "12"]).returncode, 0)

    def test_a_host_that_stood_still_is_nudged(self):
        self.assertEqual(call("exec", "true").returncode, 0)
        waiting = begin("sh", "-c", "sleep 3; echo over")
        time.sleep(1)
        os.kill(emulator(), signal.SIGSTOP)
        time.sleep(15)
        os.kill(emulator(), signal.SIGCONT)
        output, errors = waiting.communicate(timeout=60)
        self.assertEqual((waiting.returncode, output), (0, b"over\n"))
        self.assertRegex(errors, rb"stood still for 1\d s and went on when it was nudged")
        # The nudges are not taken for the next command's.
        self.assertEqual(call("exec", "echo", "next").stdout, b"next\n")

    def test_a_host_whose_kernel_crashes(self):
        done = call("exec", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
        self.check(done, "", 125, b"its emulator has ended", b"Kernel panic")

    def test_a_host_whose_emulator_is_killed(self):
        before = boot_id()
        waiting = begin("sh", "-c", "echo begun; exec sleep 1000")
        self.assertEqual(waiting.stdout.readline(), b"begun\n")
        os.kill(emulator(), signal.SIGKILL)
        _, errors = waiting.communicate(timeout=100)
        self.check(subprocess.CompletedProcess([], waiting.returncode, b"", errors), before, 125,
                   b"its emulator has ended")

    def test_a_caller_that_is_killed_takes_its_command_with_it(self):
        before = boot_id()
        waiting = begin("sh", "-c", "while echo noise; do :; done")
        self.assertEqual(waiting.stdout.readline(), b"noise\n")
        waiting.kill()
        waiting.communicate()
        done = call("exec", "sh", "-c", "echo clean; pgrep -f '[e]cho noise'; cat /proc/sys/kernel/random/boot_id")
        self.assertEqual(done.stdout.decode(), f"clean\n{before}\n")

    def test_a_host_that_does_not_come_up(self):
        with tempfile.TemporaryDirectory() as directory:
            fake = pathlib.Path(directory) / "qemu-system-x86_64"
            fake.write_text("#!/bin/sh\necho no such accelerator >&2\nexit 1\n")
            fake.chmod(0o755)
            path = f"{directory}:{os.environ['PATH']}"
            call("stop", name=SECOND)
            done = call("exec", "true", name=SECOND, env=dict(os.environ, PATH=path))
        self.assertEqual(done.returncode, 125)
        self.assertIn(b"did not come up: its emulator has ended", done.stderr)
        self.assertIn(b"no such accelerator", done.stderr)

    def test_a_host_that_comes_up_at_the_second_try(self):
        with tempfile.TemporaryDirectory() as directory:
            fake = pathlib.Path(directory) / "qemu-system-x86_64"
            real = shutil.which("qemu-system-x86_64")
            fake.write_text(f"#!/bin/sh\n[ -e {directory}/tried ] && exec {real} \"$@\"\n"
                            f"touch {directory}/tried\nexit 1\n")
            fake.chmod(0o755)
            path = f"{directory}:{os.environ['PATH']}"
            call("stop", name=SECOND)
            done = call("exec", "echo", "up", name=SECOND, env=dict(os.environ, PATH=path))
        self.assertEqual((done.returncode, done.stdout), (0, b"up\n"))
        self.assertIn(b"did not come up: its emulator has ended; once more", done.stderr)


if __name__ == "__main__":
    unittest.main()
