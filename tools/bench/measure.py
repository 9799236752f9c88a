# SPDX-License-Identifier: Apache-2.0
"""Runs contenders in turn and reduces what they took to the figures that are published."""
import dataclasses
import math
import os
import random
import re
import select
import signal
import statistics
import subprocess
import time


@dataclasses.dataclass
class Contender:
    """One VMM in one configuration: how to start it for a run, and how its run is judged."""
    name: str
    command: list
    # Bytes on its standard output that tell that the guest got there (None: only the end counts).
    marker: bytes | None = None
    # Exit statuses of a good run; a VMM that has no status of its own for it lists what it uses.
    good: tuple = (0,)
    # Called before each run, for files that a VMM wants fresh.
    prepare: object = None
    # Reads further figures (name: seconds) after a good run.
    extra: object = None
    # Called with the process's number once the marker was seen, for figures (name: value) of a VM
    # that goes on; then the process is killed, and the run was good.
    inspect: object = None
    # Called after a run with a good status; tells what was wrong with it all the same, or "".
    check: object = None
    # The socket of its API and a request for it.
    api: tuple = ()
    # The file that is its standard input, where many are started together.
    input: str = os.devnull


@dataclasses.dataclass
class Run:
    ok: bool
    why: str
    wall: float = 0.0
    cpu: float = 0.0
    marker: float | None = None
    extra: dict = dataclasses.field(default_factory=dict)
    inspected: bool = False  # killed while it ran: its times mean nothing
    status: int | None = None  # the process's, where it ended by itself


def telling(output):
    """What a failed run said of it: the line of a kernel's panic, else the end of its output."""
    text = output.decode(errors="replace")
    panic = re.search(r"Kernel panic[^\r\n]*", text)
    return panic[0] if panic else text[-300:].strip()


def run_once(contender, timeout):
    """One run: seconds from just before exec to the marker and to the reaped end, and CPU seconds."""
    if contender.prepare:
        contender.prepare()
    before = time.monotonic_ns()
    # The start of the process in CLOCK_MONOTONIC nanoseconds, for programs that report from there.
    command = [word.replace("{t0}", str(before)) for word in contender.command]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    output = bytearray()
    seen = None
    deadline = before + int(timeout * 1e9)
    pipe = process.stdout.fileno()
    timed_out = False
    inspected = None
    while True:
        left = (deadline - time.monotonic_ns()) / 1e9
        if left <= 0:
            timed_out = True
            process.send_signal(signal.SIGKILL)
            break
        if not select.select([pipe], [], [], left)[0]:
            continue
        chunk = os.read(pipe, 65536)
        now = time.monotonic_ns()
        if not chunk:
            break
        output += chunk
        if seen is None and contender.marker and contender.marker in output:
            seen = now
            if contender.inspect:
                inspected = contender.inspect(process.pid)
                process.send_signal(signal.SIGKILL)
                break
    _, status, usage = os.wait4(process.pid, 0)
    end = time.monotonic_ns()
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    tail = telling(output)
    if timed_out:
        return Run(False, f"not over after {timeout} s: {tail}")
    if inspected is not None:
        return Run(True, "", (end - before) / 1e9, usage.ru_utime + usage.ru_stime, None, inspected, inspected=True)
    if process.returncode not in contender.good:
        return Run(False, f"status {process.returncode}: {tail}", status=process.returncode)
    if contender.marker and seen is None:
        return Run(False, f"ended without {contender.marker!r}: {tail}", status=process.returncode)
    if contender.check and (wrong := contender.check()):
        return Run(False, f"{wrong}: {tail}", status=process.returncode)
    run = Run(True, "", (end - before) / 1e9, usage.ru_utime + usage.ru_stime,
              (seen - before) / 1e9 if seen else None, status=process.returncode)
    if contender.extra:
        run.extra = contender.extra(bytes(output), before)
    return run


def alternate(contenders, runs, timeout, progress, prepare_round, run=None):
    """`runs` rounds after one warm-up round, each contender once a round, so that all of them see
    the same machine; in another order each time, because what ran before leaves its memory behind,
    warm. Returns {name: [Run]}."""
    results = {contender.name: [] for contender in contenders}
    for number in range(-1, runs):
        prepare_round()
        for contender in random.Random(number).sample(contenders, len(contenders)):
            done = (run or run_once)(contender, timeout)
            if number >= 0:
                results[contender.name].append(done)
            progress(number, contender, done)
    return results


def quantile(values, q):
    values = sorted(values)
    position = q * (len(values) - 1)
    low = math.floor(position)
    high = math.ceil(position)
    return values[low] + (values[high] - values[low]) * (position - low)


def median_interval(values):
    """Distribution-free 95 % interval of the median, by order statistics."""
    values = sorted(values)
    n = len(values)
    half = 1.96 * math.sqrt(n) / 2
    low = max(0, math.floor(n / 2 - half))
    high = min(n - 1, math.ceil(n / 2 + half))
    return values[low], values[high]


def summarize(values):
    low, high = median_interval(values)
    return {"n": len(values), "min": min(values), "median": statistics.median(values),
            "p99": quantile(values, 0.99), "max": max(values), "median_low": low,
            "median_high": high}


def columns(runs):
    """{figure: values of the good runs}."""
    good = [run for run in runs if run.ok]
    if not good:
        return {}
    result = {}
    if not any(run.inspected for run in good):
        result = {"wall": [run.wall for run in good], "cpu": [run.cpu for run in good]}
    if all(run.marker is not None for run in good):
        result["marker"] = [run.marker for run in good]
    for key in good[0].extra:
        result[key] = [run.extra[key] for run in good if key in run.extra]
    return result


def figures(runs):
    """{figure: summary} over the good runs; None where none was good."""
    return {key: summarize(values) for key, values in columns(runs).items()} or None


def summaries(contenders, results):
    """What reports hold of each contender."""
    rows = []
    for contender in contenders:
        runs = results[contender.name]
        rows.append({
            "name": contender.name, "command": [str(word) for word in contender.command],
            "runs": len(runs), "good": len([run for run in runs if run.ok]), "figures": figures(runs),
            "values": columns(runs), "failures": sorted({run.why for run in runs if not run.ok})})
    return rows
