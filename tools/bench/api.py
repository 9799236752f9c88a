# SPDX-License-Identifier: Apache-2.0
"""How soon a VMM's API answers its first request, and what that took of the processor."""
import os
import socket
import subprocess
import time

from measure import Run

CPUCLOCK_SCHED = 2
POLL_SECONDS = 0.0001


def cpu_seconds(pid):
    """What the process has used, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


def first_answer(path, request, deadline):
    """The first bytes of the answer; b"" where none came in time."""
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(path)
            except OSError:
                time.sleep(POLL_SECONDS)
                continue
            client.settimeout(max(deadline - time.monotonic(), 0.001))
            client.sendall(request)
            return client.recv(4096)
    return b""


def run_api(contender, timeout):
    """One run up to the first answer; the process is ended then."""
    path, request = contender.api
    before = time.monotonic()
    process = subprocess.Popen(contender.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    answer = first_answer(path, request, before + timeout)
    wall = time.monotonic() - before
    cpu = cpu_seconds(process.pid)
    process.kill()
    process.wait()
    if os.path.exists(path):
        os.unlink(path)
    if b" 200 " not in answer:
        return Run(False, f"no answer: {answer[:200]!r}")
    return Run(True, "", wall, cpu)
