# SPDX-License-Identifier: Apache-2.0
"""What a VMM's virtio disk gives to a guest, and what that costs: the probe's jobs on one page-cached file.

Requests, bytes and latencies are the guest's own. The VMM's processor time is, between two moments at which
the guest says that its job begins and has ended and then makes no exit for a while:

    what the whole process has used (threads that have ended meanwhile count, and so do io_uring's workers,
    which are threads of the process)
    less what its vCPU threads have used: those that have guest time
    plus the system time of these, which is KVM's part of the guest's doorbells and interrupts.

Not in it: what a vCPU thread does of a VMM's own code (none, where doorbells are eventfds: the probe has no
other exits in a job), and kernel threads, which is where write-back happens and what a kernel may do for
io_uring with SQPOLL. `others` is what all that is not this process took meanwhile, as a share of all processors:
where it is not near 0, figures tell of the others too. System time of a vCPU thread is the kernel's division of its exact time by what the ticks
of its clock met, so a short job has it coarsely.
"""
import contextlib
import dataclasses
import html
import math
import os
import re
import select
import subprocess
import time

import paired
import report
import vmms
from api import cpu_seconds
from measure import Run, telling

MIB = 1 << 20
PIECE = 4096
EXT4_BYTES = 32 * MIB  # what a small one takes for itself
QUIET_MS = 50  # of the guest, before and after its job
PROBE_MIB = 16  # of guest memory, beside the buffers of a job
OPS = ("read", "write", "randread", "randwrite")
SIZES = {"4K": 4096, "64K": 65536, "1M": MIB}
DEPTHS = (1, 32, 128)
DEFAULT_JOBS = ("randread/4K/1", "randread/4K/32", "randwrite/4K/1", "randwrite/4K/32", "read/1M/8")
ALL_JOBS = [f"{op}/{size}/{depth}" for size in SIZES for op in OPS for depth in DEPTHS]


@dataclasses.dataclass(frozen=True)
class Job:
    op: str
    size: str
    depth: int

    @property
    def name(self):
        return f"{self.size} {self.op}, depth {self.depth}"

    @property
    def memory(self):
        """MiB of guest memory that it needs."""
        return PROBE_MIB + math.ceil(SIZES[self.size] * self.depth / MIB)

    def words(self, seconds):
        return (f"probe=blk op={self.op} bs={SIZES[self.size]} depth={self.depth} ms={round(seconds * 1000)} "
                f"pause={QUIET_MS} end=halt")


def parse_job(text):
    """ "OP/SIZE/DEPTH" as a Job; ValueError where it is none."""
    op, size, depth = (*text.split("/"), "", "")[:3]
    if text.count("/") != 2 or op not in OPS or size not in SIZES or not depth.isdecimal() \
            or not 1 <= int(depth) <= max(DEPTHS):
        raise ValueError(f"no job is called {text}: OP/SIZE/DEPTH with {', '.join(OPS)}; {', '.join(SIZES)}; "
                         f"1 to {max(DEPTHS)}")
    return Job(op, size, int(depth))


def make_disk(path, size):
    """Of random bytes, so that nothing finds holes or zeroes in it. In small pieces: larger ones are in large
    folios, in which ext4 takes ten times as long for a small write, whichever VMM asks for it."""
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // PIECE):
            file.write(os.urandom(PIECE))


def settle_disk(path):
    """All of it in the page cache, none of it dirty."""
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass
        os.fsync(file.fileno())


@contextlib.contextmanager
def disk_directory(work, size):
    """On an ext4 of its own, with room for a file of `size`: a loop device's, in `work`."""
    image, directory = work / "ext4.img", work / "ext4"
    with open(image, "wb") as file:
        file.truncate(size + size // 8 + EXT4_BYTES)
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", image], check=True, stdout=subprocess.DEVNULL)
    directory.mkdir()
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def contenders(arguments, job, work, disk):
    """All VMMs that are given, in all their ways to serve this job."""
    return vmms.contenders(arguments, vmms.Guest(arguments.probe, job.words(arguments.seconds), arguments.memory,
                                                 (vmms.Disk("bench", disk),), acpi=False), work)


# --- one run -----------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Times:
    """Seconds of a process, and of each of its threads: (used, system, guest); of the machine: (busy, all)."""
    process: float
    threads: dict
    machine: tuple = (0.0, 0.0)
    at: float = 0.0


def read_times(pid):
    tick = os.sysconf("SC_CLK_TCK")
    threads = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        # One that has ended meanwhile counts as a part of the process.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{pid}/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                used = int(file.read().split()[0]) / 1e9
            threads[thread] = (used, int(fields[12]) / tick, int(fields[40]) / tick)
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, idle, iowait, *interrupts = (int(word) / tick for word in file.readline().split()[1:9])
    busy = user + nice + system + sum(interrupts)
    return Times(cpu_seconds(pid), threads, (busy, busy + idle + iowait), time.monotonic())


def vmm_seconds(before, after):
    """Processor time between the two that is not the guest's; None where no thread is a vCPU's."""
    vcpus = [thread for thread, (_, _, guest) in after.threads.items() if guest > 0]
    if not vcpus:
        return None
    seconds = after.process - before.process
    for thread in vcpus:
        used, system, _ = before.threads.get(thread, (0.0, 0.0, 0.0))
        seconds += (after.threads[thread][1] - system) - (after.threads[thread][0] - used)
    return max(seconds, 0.0)


def others_share(before, after):
    busy, processors = (late - early for early, late in zip(before.machine, after.machine))
    return max(busy - (after.process - before.process), 0.0) / processors if processors > 0 else 0.0


def lost_ticks(before, after):
    """How much longer the processors were busy between the two than ticks of their clock have told."""
    busy, processors = (late - early for early, late in zip(before.machine, after.machine))
    if busy <= 0:
        return 1.0
    return max((after.at - before.at) * os.cpu_count() - (processors - busy), busy) / busy


STATE = re.compile(rb"blk_state=(begin|end)\r\n")
LINE = re.compile(rb"probe: blk=(\S+) ([^\r\n]*)\r?\n")


def read_figures(output, times):
    """What the guest says of its job, and what that took by `times` ("begin" and "end"), as figures; ValueError
    where it went wrong."""
    found = LINE.search(output)
    if not found:
        raise ValueError("ended without a result")
    told = dict(pair.split("=") for pair in found[2].decode().split())
    numbers = {name: int(value) for name, value in told.items() if name != "transport"}
    if numbers["errors"] or numbers["requests"] == 0:
        raise ValueError(f"{numbers['requests']} requests, {numbers['errors']} errors")
    both = times.get(("begin",)), times.get(("end",))
    seconds = vmm_seconds(*both) if all(both) else None
    if seconds is None:
        raise ValueError("none of its threads has guest time")
    elapsed = numbers["ns"] / 1e9
    return {"iops": numbers["requests"] / elapsed, "bandwidth": numbers["bytes"] / elapsed,
            "p50": numbers["p50_ns"] / 1e9, "p99": numbers["p99_ns"] / 1e9,
            "vmm_cpu": seconds / numbers["requests"], "doorbells": numbers["notifications"] / numbers["requests"],
            "others": others_share(*both), "depth": numbers["depth"]}


def run_job(contender, timeout, disk):
    """One run of the job, up to its result; then the process is killed."""
    return run_watched(contender, timeout, disk, STATE, LINE, read_figures)


def run_watched(contender, timeout, disk, state, ended, read):
    """One run, up to where its output matches `ended`; then the process is killed. `read` makes figures of the
    output and of the process's times at each match of `state`, by its groups; ValueError tells what was wrong."""
    settle_disk(disk)
    process = subprocess.Popen(contender.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    pipe = process.stdout.fileno()
    output = bytearray()
    times = {}
    deadline = time.monotonic() + timeout
    try:
        while not ended.search(output) and (left := deadline - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                continue
            chunk = os.read(pipe, 65536)
            if not chunk:
                break
            output += chunk
            for found in state.finditer(output):
                key = tuple(group.decode() for group in found.groups())
                if key not in times:
                    times[key] = read_times(process.pid)
        return Run(True, "", extra=read(bytes(output), times), inspected=True)
    except ValueError as wrong:
        return Run(False, f"{wrong}: {telling(bytes(output))}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- the result --------------------------------------------------------------------------------------------

COLUMNS = ("bandwidth", "p50", "p99", "vmm_cpu", "doorbells", "others")
TITLES = {"iops": "requests", "bandwidth": "bytes", "p50": "p50", "p99": "p99", "vmm_cpu": "VMM CPU/request",
          "doorbells": "doorbells/request", "others": "others"}


def label(contender, job):
    """Its name, and its depth where its queue holds less than the job wants."""
    depth = (contender["figures"] or {}).get("depth", {"median": job["depth"]})["median"]
    return contender["name"] if depth == job["depth"] else f"{contender['name']} (depth {depth:.0f})"


def shown(job, keys):
    """Those of `keys` that this job's figures have."""
    had = {key for contender in job["contenders"] for key in contender["figures"] or {}}
    return [key for key in keys if key in had]


def transport(contender):
    return contender["name"].rpartition(" ")[2]


def bases(contenders):
    """{transport: the first of the contenders on it that ran}."""
    found = {}
    for contender in contenders:
        if contender["figures"]:
            found.setdefault(transport(contender), contender)
    return found


def ratio(contender, base):
    """(of its requests per second to the base's, lowest, highest). What slows a whole round of runs down falls
    out, where each had a good run in each; without an interval where there are too few."""
    own, other = contender["values"]["iops"], base["values"]["iops"]
    if contender["good"] != contender["runs"] or base["good"] != base["runs"]:
        return contender["figures"]["iops"]["median"] / base["figures"]["iops"]["median"], None, None
    found = paired.interval([math.log(one / two) for one, two in zip(own, other, strict=True)])
    return tuple(None if value is None else math.exp(value) for value in found)


def row(contender, job, base):
    figures = contender["figures"]
    iops = figures["iops"]
    interval = f"{iops['median_low']:.0f} – {iops['median_high']:.0f}"
    found, low, high = ratio(contender, base)
    between = "" if low is None or contender is base else f"{low:.2f} – {high:.2f}"
    cells = [f"  {label(contender, job):34} {report.show(iops['median'], 'iops'):>10} {interval:>17} "
             f"{found:>6.2f} {between:>13}"]
    cells.extend(f"{report.show(figures[key]['median'], key):>{max(len(TITLES[key]), 9)}}"
                 for key in shown(job, COLUMNS))
    return " ".join([*cells, f"{contender['good']:>3}/{contender['runs']}\n"])


def table(result, out):
    """For each job a row of medians for each contender, with the ratio of its requests per second to those of the
    first contender on its transport."""
    for job in result["jobs"]:
        head = " ".join([f"  {'contender':34} {TITLES['iops']:>10} {'95 % of median':>17} {'ratio':>6} {'95 % of it':>13}",
                         *(f"{TITLES[key]:>{max(len(TITLES[key]), 9)}}" for key in shown(job, COLUMNS)), " good\n"])
        out.write(f"{job['name']}\n{head}")
        base = bases(job["contenders"])
        for contender in job["contenders"]:
            out.write(row(contender, job, base[transport(contender)]) if contender["figures"] else
                      f"  {contender['name']:34} no good run: {contender['failures'][0]}\n")
        for contender in job["contenders"]:
            for failure in contender["failures"]:
                out.write(f"  failed: {contender['name']}: {failure}\n")
        out.write("\n")
    out.write("commands, of the first job:\n")
    for contender in result["jobs"][0]["contenders"]:
        out.write(f"  {contender['name']}: {' '.join(contender['command'])}\n")


def page(result):
    sections = []
    for job in result["jobs"]:
        sections.append(f"<h2>{html.escape(job['name'])}</h2>")
        sections.extend(f"<h3>{html.escape(TITLES[key])}</h3>{report.plot(job, key)}" for key in shown(job, TITLES))
    return report.document(result, sections, result["jobs"][0]["contenders"])
