# SPDX-License-Identifier: Apache-2.0
"""What one exit and one page fault cost on this machine, to reckon what no report holds."""
import json
import mmap
import re
import subprocess
import time

TOUCH_MIB = 32


def touch(pages):
    began = time.monotonic()
    for offset in range(0, len(pages), mmap.PAGESIZE):
        pages[offset] = 1
    return time.monotonic() - began


def host_fault():
    """Seconds for the first touch of a small page by a program of the host: what a guest's fault costs
    at least, since KVM has an exit and its own page tables to add."""
    with mmap.mmap(-1, TOUCH_MIB << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages.madvise(mmap.MADV_NOHUGEPAGE)
        first = touch(pages)
        again = touch(pages)  # the same without faults
        return max(first - again, 0.0) / (len(pages) // mmap.PAGESIZE)


def without_probe():
    return {"fault": host_fault(), "fault_how": "at least: 4 KiB pages touched by a program of the host"}


def with_probe(vireo, probe, config, work):
    """The same by a guest that does nothing else, with the memory settings of `config`."""
    profile = work / "costs.json"
    words = f"probe=exits 200 probe=touch {TOUCH_MIB} end=poweroff"
    settings = work / "costs.toml"
    huge = config.get("machine", {}).get("hugepages", "off")
    settings.write_text(f'[machine]\nmemory = "128M"\nhugepages = "{huge}"\n', encoding="utf-8")
    done = subprocess.run([vireo, "run", settings, "--kernel", probe, "--cmdline", words, "--profile",
                           profile], capture_output=True, timeout=120, check=False)
    said = {name: int(number) for name, number in
            re.findall(r"probe: (\w+)=(\d+)", done.stdout.decode(errors="replace"))}
    if done.returncode != 0 or "touch_page_ticks" not in said:
        tail = (done.stdout + done.stderr)[-300:].decode(errors="replace").strip()
        raise RuntimeError(f"the probe did not tell what exits cost: status {done.returncode}: {tail}")
    second = said["tsc_khz"] * 1000
    counters = json.loads(profile.read_text(encoding="ascii"))["vcpus"][0]["kvm"]
    # Where the host gives huge pages, one fault serves many touches.
    faults = counters.get("pf_fixed", 0) or said["touch_pages"]
    return {"round_trip": (said["port_read_ticks"] + said["port_write_ticks"]) / 2 / second,
            "in_kvm": said["apic_read_ticks"] / second,
            "fault": said["touch_page_ticks"] / second * said["touch_pages"] / faults,
            "fault_how": f"faults of the probe in {TOUCH_MIB} MiB"}
