# SPDX-License-Identifier: Apache-2.0
"""A systemd of our own, beside whatever runs this machine: real, with only the units that tests give it.

    machine = SystemdMachine({"usr/local/bin/vireo": VIREO})
    machine.enter()          # from here on this process sees its files, and starts programs in it
    machine.stop()

Wants root, and cgroup v2 at /sys/fs/cgroup.
"""
import contextlib
import ctypes
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

CGROUPS = pathlib.Path("/sys/fs/cgroup")
SCRIPT = pathlib.Path(__file__).with_suffix(".sh")
# mnt last: the others are found by the /proc of outside.
NAMESPACES = ("cgroup", "net", "ipc", "uts", "pid", "mnt")


def enter_namespaces(descriptors):
    libc = ctypes.CDLL(None, use_errno=True)
    for descriptor in descriptors:
        if libc.setns(descriptor, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)


def namespaces_of(process):
    return [os.open(f"/proc/{process}/ns/{name}", os.O_RDONLY) for name in NAMESPACES]


class SystemdMachine:
    """`files`: paths below etc, var or usr/local, each with the file that is put there or its text."""

    def __init__(self, files):
        self.outside = namespaces_of("self")
        self.stage = pathlib.Path(tempfile.mkdtemp(prefix="vireo-systemd-"))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.stage], check=True)
        (self.stage / "var").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.stage / "var"], check=True)
        for directory in ("var/lib", "var/cache", "var/log", "var/tmp", "etc", "usr/local"):
            (self.stage / directory).mkdir(parents=True)
        for name, source in files.items():
            (self.stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, self.stage / name)
        for controller in (CGROUPS / "cgroup.controllers").read_text(encoding="ascii").split():
            with contextlib.suppress(OSError):
                (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")
        self.cgroup = CGROUPS / self.stage.name
        self.cgroup.mkdir()
        self.outer = subprocess.Popen(["unshare", "--fork", "--kill-child", "--pid", "--mount", "--net", "--ipc",
                                       "--uts", "sh", SCRIPT, self.cgroup, self.stage], stdin=subprocess.DEVNULL)

    def enter(self):
        """Waits until it is up. What this process starts is in it then."""
        deadline = time.monotonic() + 60
        children = pathlib.Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children")
        while True:
            with contextlib.suppress(OSError, IndexError):
                first = children.read_text(encoding="ascii").split()[0]
                if pathlib.Path(f"/proc/{first}/root/run/systemd/private").exists():
                    break
            if self.outer.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("systemd did not come up")
            time.sleep(0.05)
        enter_namespaces(namespaces_of(first))
        subprocess.run(["systemctl", "is-system-running", "--wait"], check=False, stdout=subprocess.DEVNULL)

    def stop(self):
        """Ends it with all that runs in it."""
        enter_namespaces(self.outside)
        self.outer.kill()
        self.outer.wait()
        while "populated 1" in (self.cgroup / "cgroup.events").read_text(encoding="ascii"):
            time.sleep(0.05)
        for directory, _, _ in os.walk(self.cgroup, topdown=False):
            os.rmdir(directory)
        subprocess.run(["umount", "--recursive", self.stage], check=True)
        self.stage.rmdir()
