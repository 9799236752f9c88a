# SPDX-License-Identifier: Apache-2.0
"""Loop devices, device mapper and mounts, for tests that are root on a machine which is theirs alone.

By system calls, because a program started for each mark in a log would come too late to mark it.

    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(loop_device(file))
        device = stack.enter_context(MappedDevice("faulty", [f"{sectors} linear {loop} 0"]))
        stack.enter_context(mounted(device.path, directory))
"""
import contextlib
import ctypes
import fcntl
import os
import pathlib
import struct
import subprocess
import tempfile

from vireo_process import ARTIFACTS

SECTOR = 512
LIBC = ctypes.CDLL(None, use_errno=True)


def call(function, *arguments):
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}{arguments}: {os.strerror(number)}")


def load_modules(*names):
    """Into the test host's kernel, whose modules are where it came from."""
    with tempfile.TemporaryDirectory() as root:
        modules = pathlib.Path(root, "lib/modules")
        modules.mkdir(parents=True)
        (modules / os.uname().release).symlink_to(f"{ARTIFACTS}/generic/modules")
        subprocess.run(["/sbin/modprobe", "--dirname", root, "--all", *names], check=True)


@contextlib.contextmanager
def loop_device(file):
    """The path of a block device that has its bytes in `file`."""
    done = subprocess.run(["/sbin/losetup", "--find", "--show", file], check=True, stdout=subprocess.PIPE)
    path = done.stdout.decode().strip()
    try:
        yield path
    finally:
        subprocess.run(["/sbin/losetup", "--detach", path], check=True)


@contextlib.contextmanager
def mounted(device, directory, file_system="ext4"):
    """A file system with a journal recovers by it now if it was cut off."""
    call(LIBC.mount, os.fsencode(device), os.fsencode(directory), file_system.encode(), 0, None)
    try:
        yield directory
    finally:
        call(LIBC.umount2, os.fsencode(directory), 0)


class MappedDevice:
    """A device of device mapper's. Each line of its table is LENGTH TARGET ARGUMENTS, in sectors, and
    begins where the one before ends."""

    # linux/dm-ioctl.h: struct dm_ioctl and dm_target_spec, the numbers of the commands, and a flag.
    HEADER = struct.Struct("=3I2IIiIIIQ128s129s7x")
    TARGET = struct.Struct("=QQiI16s")
    CREATE, REMOVE, RESUME, LOAD, MESSAGE = 3, 4, 6, 9, 14
    SUSPEND, WITHOUT_FREEZING, WITHOUT_FLUSHING = 1 << 1, 1 << 10, 1 << 11
    ROOM = 16 << 10

    def __init__(self, name, table):
        self.name = name
        self.control = os.open("/dev/mapper/control", os.O_RDWR)
        number = self.command(self.CREATE)
        self.path = f"/dev/dm-{os.minor(number)}"
        try:
            self.load(table)
        except OSError:
            self.remove()
            raise

    def command(self, number, flags=0, data=b"", targets=0):
        """What the kernel says is the device's number."""
        request = bytearray(self.HEADER.pack(4, 0, 0, self.ROOM, self.HEADER.size, targets, 0, flags, 0, 0, 0,
                                             self.name.encode(), b"") + data)
        request += bytes(self.ROOM - len(request))
        read_write = 3
        fcntl.ioctl(self.control, read_write << 30 | self.HEADER.size << 16 | 0xfd << 8 | number, request)
        return self.HEADER.unpack_from(request)[10]

    def load(self, table):
        """From now on the device is what `table` says. What is mounted on it is not told."""
        start, data = 0, b""
        for line in table:
            length, target, arguments = line.split(" ", 2)
            size = (self.TARGET.size + len(arguments) + 8) & ~7
            spec = self.TARGET.pack(start, int(length), 0, size, target.encode())
            data += (spec + arguments.encode()).ljust(size, b"\0")
            start += int(length)
        self.command(self.LOAD, data=data, targets=len(table))
        self.command(self.RESUME, flags=self.WITHOUT_FREEZING)

    @contextlib.contextmanager
    def suspended(self):
        """Requests to it wait meanwhile."""
        self.command(self.RESUME, flags=self.SUSPEND | self.WITHOUT_FREEZING | self.WITHOUT_FLUSHING)
        try:
            yield
        finally:
            self.command(self.RESUME, flags=self.WITHOUT_FREEZING)

    def message(self, text):
        """To the target that has the first sector."""
        self.command(self.MESSAGE, data=struct.pack("=Q", 0) + text.encode() + b"\0")

    def remove(self):
        self.command(self.REMOVE)
        os.close(self.control)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()
