# SPDX-License-Identifier: Apache-2.0
"""Runs test programs, two at a time where the machine allows it, and counts what they say."""
import collections
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEST_HOST = str(ROOT / "tools/test-host")
HOST_FAILED = 125  # its exit status
# What a lane with a test host of its own may use of the machine's memory.
HOST_BYTES = 4 << 30

Counts = collections.namedtuple("Counts", "passed failed skipped")


class Suite:
    """One test program: where it runs, and how many tests it must report (0: it is not known)."""

    def __init__(self, name, command, *, in_host=False, timeout=900, tests=0, env=None, cwd=None):
        self.name = name
        self.command = [str(word) for word in command]
        self.in_host = in_host
        self.timeout = timeout
        self.tests = tests
        self.env = env
        self.cwd = cwd


def count_unittest(status, output):
    """What unittest's closing lines say; a test with several failed parts is one failed test."""
    found = re.search(r"^Ran (\d+) tests? in .*\n\n(OK|FAILED|NO TESTS RAN)(.*)$", output, re.MULTILINE)
    if not found:
        return None
    ran = int(found[1])
    numbers = {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", found[3])}
    skipped = numbers.get("skipped", 0)
    bad = set(re.findall(r"^(?:FAIL|ERROR|UNEXPECTED SUCCESS): (\w+ \([\w.]+\))", output, re.MULTILINE))
    # A fixture that failed is not among the tests that ran.
    passed = ran - skipped - sum(not name.startswith(("setUp", "tearDown")) for name in bad)
    failed = len(bad)
    if failed == 0 and (status != 0 or found[2] != "OK" or ran == 0):
        failed = 1
    return Counts(max(passed, 0), failed, skipped)


def count_catch(status, output):
    """What Catch's closing lines say."""
    found = re.search(r"^All tests passed \(.* in (\d+) test cases?\)", output, re.MULTILINE)
    if found:
        return Counts(int(found[1]), 0, 0) if status == 0 else Counts(int(found[1]), 1, 0)
    found = re.search(r"^test cases: +(\d+)(.*)$", output, re.MULTILINE)
    if not found:
        return None
    numbers = {key: int(number) for number, key in re.findall(r"(\d+) (passed|failed|skipped)", found[2])}
    return Counts(numbers.get("passed", 0), max(numbers.get("failed", 0), 1 if status else 0),
                  numbers.get("skipped", 0))


def count(status, output, tests=0):
    """Passed, failed, skipped. A program that does not count is one test; one that ended without its
    closing lines, or ran another number of tests than it has, has failed."""
    counts = count_unittest(status, output) or count_catch(status, output)
    if counts is None:
        if status == 77:
            return Counts(0, 0, max(tests, 1))
        if status != 0 or tests or "No tests ran" in output:
            return Counts(0, max(tests, 1), 0)
        return Counts(1, 0, 0)
    if tests and sum(counts) != tests:
        lost = max(tests - sum(counts), 1)
        return Counts(counts.passed, counts.failed + lost, counts.skipped)
    return counts


def cases_of(script, env):
    """The names of a unittest file's tests, for a command line of their own each."""
    listing = ("import pathlib, sys, unittest\n"
               "path = pathlib.Path(sys.argv[1]); sys.path.insert(0, str(path.parent))\n"
               "def names(suite):\n"
               "    for item in suite:\n"
               "        yield from names(item) if isinstance(item, unittest.TestSuite) else [item.id()]\n"
               "print('\\n'.join(names(unittest.defaultTestLoader.loadTestsFromName(path.stem))))")
    done = subprocess.run([sys.executable, "-c", listing, str(script)], env=env, check=True,
                          stdout=subprocess.PIPE)
    return [name.partition(".")[2] for name in done.stdout.decode().split()]


def lanes_of_this_machine():
    """Two test hosts run side by side where there are two processors and memory for both."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    return 2 if len(os.sched_getaffinity(0)) >= 2 and available >= 2 * HOST_BYTES else 1


class Runner:
    """Runs suites and adds up. Each lane is a thread with a test host of its own."""

    def __init__(self, lanes=None, host="tests"):
        self.total = Counts(0, 0, 0)
        self.hosts = [f"{host}-{number + 1}" for number in range(lanes or lanes_of_this_machine())]
        self.printing = threading.Lock()

    def run(self, suites, lanes=None):
        """All of `suites`, which begin in the order given, in the first `lanes` of the lanes."""
        waiting = queue.SimpleQueue()
        for suite in suites:
            waiting.put(suite)
        lanes = [threading.Thread(target=self.lane, args=(host, waiting), daemon=True)
                 for host in self.hosts[:lanes]]
        self.stop_hosts()  # one that is still up may have seen an older build
        try:
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
        finally:
            self.stop_hosts()

    def lane(self, host, waiting):
        while True:
            try:
                suite = waiting.get_nowait()
            except queue.Empty:
                return
            began = time.monotonic()
            try:
                status, output = self.execute(suite, host)
                if suite.in_host and status == HOST_FAILED:
                    # The emulator has ended or stands still, which says nothing about the test.
                    with self.printing:
                        print(f"{suite.name}: its test host failed; once more in a fresh one", flush=True)
                    status, output = self.execute(suite, host)
            except OSError as error:
                status, output = 127, f"{error}\n"
            self.account(suite, status, output, time.monotonic() - began)

    def account(self, suite, status, output, seconds):
        counts = count(status, output, suite.tests)
        with self.printing:
            self.total = Counts(*map(sum, zip(self.total, counts)))
            print(f"{suite.name}: {counts.passed} passed, {counts.failed} failed, "
                  f"{counts.skipped} skipped ({seconds:.0f} s)", flush=True)
            if counts.failed or counts.skipped:
                print(f"    exit status {status}; the output ends:")
                print("\n".join("    " + line for line in output.splitlines()[-200:]), flush=True)

    @staticmethod
    def execute(suite, host):
        """(status, output); what does not end in time is ended with all it started."""
        command, timeout = suite.command, suite.timeout
        if suite.in_host:
            command = [TEST_HOST, "exec", "--name", host, "--timeout", str(timeout), "--", *command]
            timeout += 600  # the host has watchdogs of its own, which tell more; and it boots first
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, env=suite.env, cwd=suite.cwd,
                                   start_new_session=True)
        try:
            output, _ = process.communicate(timeout=timeout)
            return process.returncode, output.decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return 124, output.decode(errors="replace") + f"not over within {timeout} s\n"

    def stop_hosts(self):
        for host in self.hosts:
            subprocess.run([TEST_HOST, "stop", "--name", host], check=False)

    def finish(self):
        """The last line, and the exit status: a skipped test is not a passed one."""
        print(f"{self.total.passed} passed, {self.total.failed} failed, {self.total.skipped} skipped",
              flush=True)
        return 0 if self.total.passed > 0 and self.total.failed == self.total.skipped == 0 else 1
