#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the tree to its include direction: which folder may include which.

usage: check_includes.py [ROOT]    exit 0: all includes are allowed; 1: each offender on a line
"""
import pathlib
import re
import sys

CORE = {"src/base", "src/memory", "src/bus", "src/io", "src/snapshot"}

# folder: the folders that it may include besides itself
ALLOWED = {
    "src/base": set(),
    "src/memory": {"src/base"},
    "src/bus": {"src/base"},
    "src/io": {"src/base"},
    "src/snapshot": {"src/base"},
    "src/kvm": {"src/base", "src/memory", "src/bus"},
    "src/seccomp": {"src/base", "src/kvm"},
    "src/manual": set(),
    "devices/legacy": CORE,
    "devices/pci": CORE,
    "devices/virtio": CORE | {"devices/pci"},
    "arch": {"src/base", "src/memory", "src/kvm", "src/snapshot"},
    "boot": {"src/base", "src/memory", "arch"},
    "tools": {"src/base", "src/snapshot"},
}
# Any other folder of devices/: one device each.
DEVICE = CORE | {"devices/pci", "devices/virtio"}
# The top of src, from the uppermost down: each may include those after it.
TOP = ["main", "options", "doctor", "doctor_kvm", "doctor_ring", "doctor_memory", "doctor_host",
       "doctor_sandbox", "doctor_checks", "doctor_speed", "ctl", "ctl_print", "ctl_snapshot", "ctl_client", "ctl_command", "disk_command", "snapshot_command", "snapshot_store", "seal", "progress", "control", "control_verbs", "drive", "snapshot_verb", "http",
       "machine_build", "machine_end", "machine_memory", "machine_metrics", "machine_restore", "machine_snapshot", "machine", "restore", "snapshot_memory", "snapshot_job", "disk_checkpoint", "memory_save", "change_log", "saved_disks", "saved_machine", "metrics", "profile", "exit_report", "guest_steps",
       "device_arguments", "device_set", "disks", "volume", "cloud_seed", "helper_program", "io_threads", "pci_host", "ready_text", "supervisor", "events", "sandbox", "empty_root", "landlock", "sandbox_paths", "allowed_paths",
       "pid_file", "report_file", "timeline", "config_toml", "config_print", "toml", "config_option", "option_words", "config_keys", "config_disks", "config_limits", "config_validate", "config_rate_limit",
       "config_value", "config", "uuid", "disk_config", "limits", "cgroup"]
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def folder_of(path):
    parts = path.split("/")
    if parts[0] in ("arch", "boot", "tools", "tests"):
        return parts[0]
    if parts[0] == "src" and len(parts) == 2:
        return "src"
    return "/".join(parts[:2])


def problem(source, target):
    """Why `source` may not include `target` (paths from the root), or None."""
    of, to = folder_of(source), folder_of(target)
    if of == "tests":
        return None
    if of == "src":
        if to != "src":
            return None
        stem, wanted = pathlib.Path(source).stem, pathlib.Path(target).stem
        if stem not in TOP or wanted not in TOP:
            missing = stem if stem not in TOP else wanted
            return f"src/{missing} has no place in the order of the top of src (see TOP)"
        if TOP.index(wanted) < TOP.index(stem):
            return "the top of src includes downwards only"
        return None
    if to == of:
        return None
    if of == "boot" and to == "arch" and not target.endswith("/layout.h"):
        return "boot may include only arch's layout.h"
    allowed = ALLOWED.get(of, DEVICE if of.startswith("devices/") else set())
    return None if to in allowed else f"{of} may not include {to}"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    checked = 0
    failed = []
    for top in ("src", "devices", "arch", "boot", "tools", "tests"):
        for file in sorted((root / top).rglob("*")):
            if file.suffix not in (".h", ".cc"):
                continue
            source = file.relative_to(root).as_posix()
            checked += 1
            for number, line in enumerate(file.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                if not (root / match[1]).exists():
                    failed.append(f"{source}:{number}: {match[1]} is not a path from the root")
                    continue
                why = problem(source, match[1])
                if why:
                    failed.append(f"{source}:{number}: {match[1]}: {why}")
    print("\n".join(failed) if failed else f"{checked} files include in the right direction")
    return 1 if failed or checked == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
