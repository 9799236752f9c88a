# SPDX-License-Identifier: Apache-2.0
"""Jobs of fio in a Linux guest, on a virtio disk that is a page-cached file of the host's.

One boot does all jobs, after one that does not count. Requests, bytes and latencies are what fio tells; it opens
the disk with O_DIRECT and asks by libaio. The VMM's processor time is, between two moments at which the guest
says that a job begins and has ended, and then sleeps for a while:

    what the whole process has used
    less the guest time of its vCPU threads

So it has the VMM's own work on whatever thread and KVM's work in between, and not what kernel threads do. Guest
time comes by ticks of the host's clock: a job should last for seconds. Where ticks get lost, as in an emulated
host, those that did not are taken for all.
"""
import base64
import binascii
import dataclasses
import gzip
import json
import re

import block
import linux_guest
import vmms

QUIET_SECONDS = 0.2  # of the guest, before and after each job
SYSTEM_MIB = 128  # of guest memory, beside the buffers of a job
DEFAULT_MEMORY_MIB = 256
SCRIPT = """
for disk in /sys/block/vd*; do
  case $(cat $disk/ro) in 1) root=/dev/${disk##*/} ;; *) bench=/dev/${disk##*/} ;; esac
done
mount -t ext4 -o ro $root /root
mount -t tmpfs tmpfs /root/tmp
for place in dev proc sys; do
  mount -o bind /$place /root/$place
done
sed "s,^filename=.*,filename=$bench," /jobs.fio >/root/tmp/jobs.fio
cd /root/tmp
chroot /root /bin/sh -c 'cd /tmp && exec fio --output-format=json --output=result --eta=never jobs.fio'
status=$?
[ -s result ] && echo "fio: result $(gzip -c result | base64 -w 0)"
echo "fio: status $status"
""" + linux_guest.END
GLOBAL = """[global]
filename=
direct=1
ioengine=libaio
thread=1
time_based=1
runtime={milliseconds}ms
stonewall=1
norandommap=1
lat_percentiles=1
clat_percentiles=0
percentile_list=50:99
"""
JOB = """[{name}]
rw={op}
bs={size}
iodepth={depth}
exec_prerun=echo fio: begin {name} >/dev/console && sleep {quiet}
exec_postrun=echo fio: end {name} >/dev/console && sleep {quiet}
"""


# The first requests meet code and memory that nothing has used yet; where the host is emulated, for long.
WARM_UP = """[warm-up]
rw=randrw
bs=4096
iodepth=4
runtime=1s
"""


def name_of(job):
    return f"{job.op}-{job.size}-{job.depth}"


def job_file(jobs, seconds):
    parts = [GLOBAL.format(milliseconds=round(seconds * 1000)), WARM_UP]
    parts.extend(JOB.format(name=name_of(job), op=job.op, size=block.SIZES[job.size], depth=job.depth,
                            quiet=QUIET_SECONDS) for job in jobs)
    return "".join(parts)


def memory_for(jobs):
    """MiB of guest memory that they need."""
    return SYSTEM_MIB + max(job.memory - block.PROBE_MIB for job in jobs)


def contenders(arguments, work, disk):
    """All VMMs that are given, in all their ways to serve the disk to a guest that does the jobs."""
    files = {"added.sh": SCRIPT, "jobs.fio": job_file(arguments.jobs, arguments.seconds)}
    guest = vmms.Guest(arguments.kernel, linux_guest.ADDED_WORDS, arguments.memory,
                       (vmms.Disk("root", arguments.rootfs, readonly=True), vmms.Disk("bench", disk)),
                       initramfs=linux_guest.add_files(arguments.initramfs, files, work / "initramfs.cpio"))
    return vmms.contenders(arguments, guest, work)


# --- one run -----------------------------------------------------------------------------------------------

STATE = re.compile(rb"fio: (begin|end) (\S+)\r?\n")
RESULT = re.compile(rb"fio: result ([A-Za-z0-9+/=]+)\r?\n")
ENDED = re.compile(rb"fio: status (\d+)\r?\n")


def seconds_beside_guest(before, after):
    """Processor time between the two that is not the guest's; None where no thread is a vCPU's."""
    guest = sum(times[2] - before.threads.get(thread, (0, 0, 0.0))[2] for thread, times in after.threads.items())
    if guest <= 0:
        return None
    return max(after.process - before.process - guest * block.lost_ticks(before, after), 0.0)


def read_job(job, told, times):
    """The figures of one job of fio's result, by `times` at {(state, name)}; ValueError where it went wrong."""
    name = name_of(job)
    if told["error"]:
        raise ValueError(f"{name}: error {told['error']}")
    if not all((state, name) in times for state in ("begin", "end")):
        raise ValueError(f"{name}: its beginning and end were not seen")
    side = told["write" if "write" in job.op else "read"]
    if side["total_ios"] == 0:
        raise ValueError(f"{name}: no requests")
    both = times["begin", name], times["end", name]
    seconds = seconds_beside_guest(*both)
    if seconds is None:
        raise ValueError("none of its threads has guest time")
    percentile = side["lat_ns"]["percentile"]
    return {"iops": side["iops"], "bandwidth": side["bw_bytes"], "p50": percentile["50.000000"] / 1e9,
            "p99": percentile["99.000000"] / 1e9, "vmm_cpu": seconds / side["total_ios"],
            "others": block.others_share(*both)}


def read_figures(jobs, output, times):
    """{name of a job: figures}"""
    ended, found = ENDED.search(output), RESULT.search(output)
    if not ended or ended[1] != b"0" or not found:
        raise ValueError(f"fio ended with status {ended[1].decode()}" if ended else "ended without a result")
    try:
        text = gzip.decompress(base64.b64decode(found[1])).decode()
        told = json.loads(text[text.index("{"):])["jobs"]  # what stands before it are notes
    except (binascii.Error, EOFError, OSError, ValueError) as wrong:
        raise ValueError(f"its result is none: {wrong}") from None
    results = {entry["jobname"]: entry for entry in told}
    return {job.name: read_job(job, results[name_of(job)], times) for job in jobs}


def run_jobs(contender, timeout, disk, jobs):
    """One run of all jobs, up to their results; then the process is killed."""
    return block.run_watched(contender, timeout, disk, STATE, ENDED,
                             lambda output, times: read_figures(jobs, output, times))


def results_of(job, results):
    """{contender: [Run]} of one of the jobs, of those of all."""
    return {name: [dataclasses.replace(run, extra=run.extra[job.name]) if run.ok else run for run in runs]
            for name, runs in results.items()}
