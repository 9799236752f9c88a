# SPDX-License-Identifier: Apache-2.0
"""Where one boot's time went, out of the timeline and the profile that vireo wrote of it.

All times are seconds. What no report holds and is reckoned instead has `estimate` in its name.
"""
import re

# What is done on the way to each moment of the timeline.
STEP_LABELS = {
    "process_start": "exec and loader", "config_parsed": "options and configuration",
    "kvm_ready": "KVM opened, VM created", "memory_ready": "guest memory and its slots",
    "devices_ready": "devices", "kernel_loaded": "kernel and initramfs into memory",
    "first_entry": "tables, vCPUs, threads",
}
MSR_NAMES = {
    0x10: "TSC", 0x17: "PLATFORM_ID", 0x1b: "APIC_BASE", 0x34: "SMI_COUNT", 0x3a: "FEATURE_CONTROL",
    0x8b: "UCODE_REV", 0xce: "PLATFORM_INFO", 0x140: "MISC_FEATURES", 0x1a0: "MISC_ENABLE",
    0x606: "RAPL_POWER_UNIT", 0x611: "PKG_ENERGY", 0x64e: "PPERF", 0xc0000080: "EFER",
    0xc0010015: "HWCR", 0xc001001f: "NB_CFG", 0xc0010064: "PSTATE", 0xc0010299: "AMD_RAPL_UNIT",
}
# Log line of vireo's loading of the kernel: its parts, each in microseconds.
LOAD_PARTS = re.compile(r"prepared in (\d+) us, populated in (\d+), read in (\d+), relocated in (\d+)")
LOAD_LABELS = ("prepared", "memory populated", "read", "relocated")


def printable(text, limit=60):
    """Text that a guest made, on one line of a terminal whose state it cannot change."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return shown if len(shown) <= limit else shown[:limit - 1] + "…"


def segment(name, label, begin, seconds, cpu, parts=()):
    return {"name": name, "label": label, "begin": begin, "seconds": seconds, "cpu": cpu,
            "parts": list(parts)}


def phase_label(before, after):
    if before is None:
        return "to the end" if after is None else f"to mark {after}"
    return f"mark {before} to " + ("the end" if after is None else f"mark {after}")


def timeline_segments(timeline, wall, log=""):
    """(before the first instruction, phases of the guest, end of the process).

    The timeline begins in main(); exec and the loader are taken to have lasted as long as the CPU time
    that they used, and the rest of `wall` behind the last moment is the process's end."""
    steps = [step for step in timeline["steps"] if step["name"] != "ready"]
    started = steps[0]["cpu_us"] / 1e6
    before = [segment("process_start", STEP_LABELS["process_start"], 0.0, started, started)]
    phases, mark, in_guest = [], None, False
    for previous, step in zip(steps, steps[1:]):
        begin, seconds = started + previous["at_us"] / 1e6, (step["at_us"] - previous["at_us"]) / 1e6
        cpu = (step["cpu_us"] - previous["cpu_us"]) / 1e6
        name = step["name"]
        if not in_guest:
            before.append(segment(name, STEP_LABELS.get(name, name), begin, seconds, cpu,
                                  load_parts(log, begin) if name == "kernel_loaded" else ()))
            in_guest = name == "first_entry"
            continue
        after = name.partition(":")[2] if name.startswith("guest_mark") else None
        phases.append(segment(name, phase_label(mark, after), begin, seconds, cpu))
        mark = after
    ended = started + steps[-1]["at_us"] / 1e6
    end = segment("end", "KVM and memory given back", ended, max(wall - ended, 0.0), None)
    return before, phases, end


def load_parts(log, begin):
    found = LOAD_PARTS.search(log)
    parts = []
    for label, microseconds in zip(LOAD_LABELS, found.groups() if found else ()):
        parts.append(segment(label, label, begin, int(microseconds) / 1e6, None))
        begin += int(microseconds) / 1e6
    return parts


def place(record):
    """Port, register or MSR of an exit, as people write it."""
    address = record.get("address")
    if address is None:
        return ""
    if record["reason"] in ("rdmsr", "wrmsr") and address != "other":
        name = MSR_NAMES.get(int(address, 16))
        return f"{address} {name}" if name else address
    return address


def exit_rows(profile):
    """One row for each kind and place of an exit, the vCPUs and phases added up, costliest first."""
    rows = {}
    for vcpu in profile["vcpus"]:
        for record in vcpu["exits"]:
            key = (record["reason"], record.get("direction", ""), record.get("device", ""), place(record))
            row = rows.setdefault(key, {"kind": key[0], "direction": key[1], "device": key[2],
                                        "place": key[3], "count": 0, "seconds": 0.0, "phases": {}})
            row["count"] += record["count"]
            row["seconds"] += record["handling_us"] / 1e6
            phase = str(record["phase"])
            row["phases"][phase] = row["phases"].get(phase, 0) + record["count"]
    return sorted(rows.values(), key=lambda row: (-row["seconds"], -row["count"]))


def grouped(rows, key):
    """Rows added up by one of their columns."""
    sums = {}
    for row in rows:
        group = sums.setdefault(row[key], {key: row[key], "count": 0, "seconds": 0.0})
        group["count"] += row["count"]
        group["seconds"] += row["seconds"]
    return sorted(sums.values(), key=lambda group: (-group["seconds"], -group["count"]))


def kvm_counters(profile):
    """KVM's own counters: of the vCPUs added up, and of the VM."""
    counters = {}
    for source in [vcpu["kvm"] for vcpu in profile["vcpus"]] + [profile["kvm"]]:
        for name, number in source.items():
            counters[name] = counters.get(name, 0) + number
    return counters


def halted(counters):
    """Seconds in which vCPUs slept or waited for work."""
    return sum(number for name, number in counters.items()
               if re.fullmatch(r"halt_(wait|poll_success|poll_fail)_ns", name)) / 1e9


def add_phase_figures(phases, profile, rows):
    """Pages first touched in each phase, and what exited in it."""
    pages = {str(phase["phase"]): phase["pages_touched"] for phase in profile["phases"]}
    for number, phase in enumerate(phases):
        phase["pages_touched"] = pages.get(str(number), 0)
        phase["exits"] = sum(row["phases"].get(str(number), 0) for row in rows)


def console_figures(rows, output_bytes, round_trip):
    """What the serial port took: its exits' handling, and with a measured round trip all of them."""
    serial = [row for row in rows if row["device"] == "serial"]
    count = sum(row["count"] for row in serial)
    figures = {"bytes": output_bytes, "exits": count, "handling": sum(row["seconds"] for row in serial)}
    if round_trip:
        figures["estimate"] = figures["handling"] + count * round_trip
    return figures


def estimates(rows, counters, costs):
    """What KVM did within KVM_RUN, reckoned from its counters and the cost of one of each."""
    to_vireo = sum(row["count"] for row in rows)
    faults = counters.get("pf_fixed", 0)
    # A fault is an exit as well; the rest of KVM's count it answered by itself.
    in_kvm = max(counters.get("exits", 0) - to_vireo - counters.get("pf_taken", faults), 0)
    result = {"page_faults": {"count": faults, "estimate": faults * costs["fault"],
                              "how": costs["fault_how"]}}
    if costs.get("round_trip"):
        result["exits_to_vireo"] = {"count": to_vireo, "estimate": to_vireo * costs["round_trip"],
                                    "how": "port access of the probe"}
        result["exits_in_kvm"] = {"count": in_kvm, "estimate": in_kvm * costs["in_kvm"],
                                  "how": "local APIC access of the probe"}
    return result


def least_initcalls(profiles):
    """The least time of each function over several boots, in the order of the first: what disturbs a
    boot only ever adds."""
    least, order = {}, []
    for number, profile in enumerate(profiles):
        seen = {}
        for step in profile["guest_steps"]:
            # Modules may have functions of one name: the n-th of it is its own row.
            seen[step["name"]] = seen.get(step["name"], 0) + 1
            key = step["name"], seen[step["name"]]
            if number == 0:
                order.append(key)
            seconds = step["duration_us"] / 1e6
            least[key] = min(least.get(key, seconds), seconds)
    return [{"name": name, "seconds": least[name, count]} for name, count in order]


def explain(boot, costs, initcall_profiles=()):
    """Everything of one boot; `boot` has wall, timeline, profile, log and the bytes of its console."""
    before, phases, end = timeline_segments(boot["timeline"], boot["wall"], boot["log"])
    profile = boot["profile"]
    rows, counters = exit_rows(profile), kvm_counters(profile)
    add_phase_figures(phases, profile, rows)
    return {
        "wall": boot["wall"], "cpu": boot["cpu"], "before": before, "phases": phases, "end": end,
        "guest": {"seconds": sum(phase["seconds"] for phase in phases),
                  "in_kvm_run": sum(vcpu["in_kvm_run_us"] for vcpu in profile["vcpus"]) / 1e6,
                  "handling": sum(row["seconds"] for row in rows),
                  "halted": halted(counters), "vcpus": len(profile["vcpus"])},
        "exits": rows, "exits_by_kind": grouped(rows, "kind"),
        "exits_by_device": [group for group in grouped(rows, "device") if group["device"]],
        "kvm": counters, "estimates": estimates(rows, counters, costs),
        "console": console_figures(rows, boot["console_bytes"], costs.get("round_trip")),
        "initcalls": least_initcalls(initcall_profiles),
    }
