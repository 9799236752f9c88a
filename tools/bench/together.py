# SPDX-License-Identifier: Apache-2.0
"""Many processes of one contender, let go at the same instant."""
import contextlib
import os
import selectors
import signal
import subprocess
import time

from measure import Run, telling

# Waits for the end of its input, which all of them reach at once.
WAIT = ("sh", "-c", 'read -r _; input=$1; shift; exec "$@" <"$input"', "sh")


def start_all(contender, count):
    """The processes, and the descriptor that lets them go when it is closed."""
    held, gate = os.pipe()
    processes = [subprocess.Popen([*WAIT, contender.input, *contender.command], stdin=held, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT) for _ in range(count)]
    os.close(held)
    time.sleep(0.3)  # until each of them waits
    return processes, gate


def listen(processes, marker, deadline, to_the_end=True):
    """Reads all of them to their end, or until each said `marker`: what each said, and when it first said that."""
    said = {process: bytearray() for process in processes}
    seen = {}
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.stdout, selectors.EVENT_READ, process)
        while selector.get_map() and (to_the_end or len(seen) < len(processes)):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for key, _ in selector.select(left):
                process = key.data
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    selector.unregister(process.stdout)
                    continue
                said[process] += chunk
                if process not in seen and marker in said[process]:
                    seen[process] = time.monotonic()
    return said, seen


def inspect_together(contender, count, timeout):
    """What `contender.inspect` tells of each of `count` processes, all of which go on behind their marker."""
    processes, gate = start_all(contender, count)
    os.close(gate)
    said, seen = listen(processes, contender.marker, time.monotonic() + timeout, to_the_end=False)
    try:
        silent = next((said[process] for process in processes if process not in seen), None)
        if silent is not None:
            raise RuntimeError(f"one said no {contender.marker!r}: {telling(silent)}")
        return [contender.inspect(process.pid) for process in processes]
    finally:
        # All of them first: each that goes on takes the processor from those that are to end.
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            process.stdout.close()


def run_together(contender, count, timeout):
    """One run of `count` processes at once. Its marker is the last one's, its wall time ends with the last
    end, its CPU time is that of all."""
    processes, gate = start_all(contender, count)
    before = time.monotonic()
    os.close(gate)
    said, seen = listen(processes, contender.marker, before + timeout)
    cpu = 0.0
    why = ""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            if process not in seen:
                os.kill(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        cpu += usage.ru_utime + usage.ru_stime
        if process not in seen or process.returncode not in contender.good:
            why = f"status {process.returncode}: {telling(said[process])}"
    if why:
        return Run(False, why)
    return Run(True, "", time.monotonic() - before, cpu, max(seen.values()) - before,
               {"first of all": min(seen.values()) - before})
