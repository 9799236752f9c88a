#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The sandbox of the program that is shipped, tried from within each kind of thread while a guest runs."""
import ctypes
import errno
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from traced import Traced  # noqa: E402
from vireo_process import PROBE, VIREO, start  # noqa: E402

AT_FDCWD = -100
TIOCGPGRP, TIOCSTI, KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION, KVM_RUN = (
    0x540f, 0x5412, 0xae01, 0xae41, 0x4020ae46, 0xae80)

# System calls of x86-64 with their first arguments: 50 things that no thread needs.
FORBIDDEN = {
    "open /etc/passwd": (2, 0), "openat from the working directory": (257, AT_FDCWD, 0),
    "openat2": (437, AT_FDCWD, 0), "creat": (85, 0), "execve": (59, 0), "execveat": (322, AT_FDCWD, 0),
    "fork": (57,), "vfork": (58,), "clone": (56, 0), "clone3": (435, 0, 0), "a TCP socket": (41, 2, 1, 0),
    "a UNIX socket": (41, 1, 1, 0), "a netlink socket": (41, 16, 3, 0), "connect": (42, 0), "bind": (49, 0),
    "listen": (50, 0), "accept4": (288, 0), "sendmsg with descriptors": (46, 0), "recvmsg": (47, 0),
    "ptrace": (101, 0), "process_vm_readv": (310, 0), "process_vm_writev": (311, 0), "kill": (62, 1, 9),
    "pidfd_open": (434, 1, 0), "pidfd_getfd": (438, 0), "mount": (165, 0), "umount2": (166, 0),
    "pivot_root": (155, 0), "chroot": (161, 0), "unshare": (272, 0), "setns": (308, 0),
    "open_tree": (428, AT_FDCWD), "move_mount": (429, 0), "fsopen": (430, 0),
    "a second ring": (425, 8, 0), "registering buffers with the ring": (427, 0, 0, 0),
    "registering files with the ring": (427, 0, 2, 0), "bpf": (321, 0), "perf_event_open": (298, 0),
    "userfaultfd": (323, 0), "memfd_create": (319, 0), "keyctl": (250, 0), "add_key": (248, 0),
    "init_module": (175, 0), "finit_module": (313, 0), "kexec_load": (246, 0), "reboot": (169, 0),
    "setuid": (105, 0), "capset": (126, 0), "prctl": (157, 4, 1), "seccomp": (317, 1, 0, 0),
    "a new VM": (16, 3, KVM_CREATE_VM, 0), "a new vCPU": (16, 3, KVM_CREATE_VCPU, 9),
    "TIOCSTI": (16, 0, TIOCSTI, 0),
    "link": (86, 0), "symlink": (88, 0), "mkdir": (83, 0), "chmod": (90, 0), "chown": (92, 0),
    "rename": (82, 0), "unlink": (87, 0), "truncate": (76, 0), "mknod": (133, 0), "setrlimit": (160, 0),
    "prlimit64": (302, 1), "read": (0, 99), "pwrite64": (18, 99), "getsockopt": (55, 99), "rt_sigaction": (13, 1, 0),
    "sched_setaffinity": (203, 0), "name_to_handle_at": (303, AT_FDCWD), "open_by_handle_at": (304, AT_FDCWD),
}
# What the main thread may do and a vCPU's may not.
FORBIDDEN_TO_VCPUS = {
    "io_uring_enter": (426, 0), "unlinkat": (263, 0), "renameat": (264, 0), "openat below a directory": (257, 3, 0),
    "openat2 below a directory": (437, 3, 0),
    "close": (3, 99), "TIOCGPGRP": (16, 0, TIOCGPGRP, 0), "shutdown": (48, 99),
    "pwritev2": (328, 99, 0), "ftruncate": (77, 99), "lseek": (8, 99), "statx": (332, 99), "BLKSSZGET": (16, 99, 0x1268),
    "a new memory slot": (16, 3, KVM_SET_USER_MEMORY_REGION, 0),
}
IORING_OFF_SQ_RING, IORING_OFF_SQES = 0, 0x10000000
IORING_OP_WRITE, IORING_OP_LAST = 23, 49
# READV, WRITEV, FSYNC, POLL_ADD, RECVMSG, TIMEOUT, ACCEPT, ASYNC_CANCEL, FALLOCATE, READ, WRITE
OPERATIONS_IN_USE = (1, 2, 3, 6, 10, 11, 13, 14, 17, 22, 23)
MARK = 0x6d61726b
FORBIDDEN_TO_MAIN = {"running a vCPU": (16, 3, KVM_RUN, 0), "pwritev2": (328, 99, 0)}
FORBIDDEN_TO_IO = {name: call for name, call in (FORBIDDEN_TO_VCPUS | FORBIDDEN_TO_MAIN).items()
                   if call[0] not in (426, 328)} | {"pread64": (17, 99)}


def ring_offsets():
    """Where this kernel has the parts of a ring: struct io_sqring_offsets and io_cqring_offsets."""
    params = ctypes.create_string_buffer(120)
    descriptor = ctypes.CDLL(None).syscall(425, 1, params)
    assert descriptor >= 0
    os.close(descriptor)
    offsets = {}
    for names, at in ((("sq_head", "sq_tail", "sq_mask"), 40),
                      (("cq_head", "cq_tail", "cq_mask", "cq_entries", "cq_overflow", "cqes"), 80)):
        offsets.update(zip(names, struct.unpack_from(f"{len(names)}I", params, at)))
    return offsets


class ForbiddenAsRoot(unittest.TestCase):
    """ptrace of a process that may not be dumped takes a privilege."""

    def vm(self, *options):
        traced = Traced([VIREO, "run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff", "--ready",
                         "serial:echo", *map(str, options)])
        traced.wait_for(b"echo=ready")
        return traced

    def each_ends_the_process(self, thread, calls, *options):
        for name, (number, *arguments) in calls.items():
            with self.subTest(name, thread=thread), self.vm(*options) as traced:
                result = traced.call(traced.thread(thread), number, *arguments)
                self.assertIsNone(result)
                self.assertTrue(os.WIFSIGNALED(traced.status), traced.status)
                self.assertEqual(os.WTERMSIG(traced.status), signal.SIGSYS)

    def test_from_the_main_thread(self):
        self.each_ends_the_process("vireo", FORBIDDEN | FORBIDDEN_TO_MAIN)

    def test_from_a_vcpus_thread(self):
        self.each_ends_the_process("vireo-vcpu0", FORBIDDEN | FORBIDDEN_TO_VCPUS)

    def test_from_a_thread_that_serves_queues(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            config.write("[machine]\nio_threads = 1\n")
            config.flush()
            self.each_ends_the_process("vireo-io0", FORBIDDEN | FORBIDDEN_TO_IO, config.name)

    def test_what_is_allowed_goes_through_the_same_door(self):
        """Else the tests above would pass whatever the filter says."""
        with self.vm() as traced:
            for thread in ("vireo", "vireo-vcpu0"):
                self.assertEqual(traced.call(traced.thread(thread), 39), traced.pid)  # getpid

    def completion(self, opcode):
        """What the ring of a VM answers to an operation that a guest has put into it."""
        answers = []
        at = ring_offsets()
        with self.vm() as traced:
            mapped = {int(fields[2], 16): int(fields[0].split("-")[0], 16) for fields in
                      (line.split() for line in pathlib.Path(f"/proc/{traced.pid}/maps").read_text().splitlines())
                      if fields[-1] == "anon_inode:[io_uring]"}
            ring, sqes = mapped[IORING_OFF_SQ_RING], mapped[IORING_OFF_SQES]
            descriptor = next(int(entry.name) for entry in pathlib.Path(f"/proc/{traced.pid}/fd").iterdir()
                              if os.readlink(entry) == "anon_inode:[io_uring]")
            with open(f"/proc/{traced.pid}/mem", "r+b", buffering=0) as memory:
                def word(name, value=None):
                    memory.seek(ring + at[name])
                    if value is None:
                        return struct.unpack("I", memory.read(4))[0]
                    return memory.write(struct.pack("I", value))

                def look():
                    memory.seek(ring + at["cqes"] + 16 * ((word("cq_tail") - 1) & word("cq_mask")))
                    answers.append(struct.unpack("QiI", memory.read(16)))

                def prepare():
                    tail = word("sq_tail")
                    memory.seek(sqes + 64 * (tail & word("sq_mask")))
                    memory.write(struct.pack("=BBHiQQIIQ24x", opcode, 0, 0, AT_FDCWD, 0, 0, 0, 0, MARK))
                    word("sq_tail", tail + 1)

                self.assertEqual(traced.call(traced.thread("vireo"), 426, descriptor, 1, 0, 0,
                                             prepare=prepare, look=look), 1)
        user_data, result, _ = answers[0]
        self.assertEqual(user_data, MARK)
        return result

    def test_no_operation_of_the_ring_but_those_in_use(self):
        self.assertEqual(self.completion(IORING_OP_WRITE), -errno.EBADF)  # one of those that are
        for opcode in range(IORING_OP_LAST):
            if opcode not in OPERATIONS_IN_USE:
                with self.subTest(opcode):
                    self.assertEqual(self.completion(opcode), -errno.EACCES)

    def test_no_file_but_its_own(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            (directory / "other").write_text("kept", encoding="ascii")
            (directory / "sub").mkdir()
            with self.vm("--control", directory / "sub/vm.sock", "--metrics", directory / "sub/metrics") as traced:
                main = traced.thread("vireo")
                # The directories in which its own files are removed and made, by their descriptors.
                held = [int(entry.name) for entry in pathlib.Path(f"/proc/{traced.pid}/fd").iterdir()
                        if os.readlink(entry).rstrip("/").endswith("/sub")]
                self.assertTrue(held)
                for descriptor in held:
                    for path, flags in ((b"../other", os.O_RDONLY), (b"../other", os.O_WRONLY),
                                        (b"/etc/passwd", os.O_RDONLY), (b"/proc/self/mem", os.O_RDWR),
                                        (b"../new", os.O_WRONLY | os.O_CREAT)):
                        result = traced.call(main, 257, descriptor, None, flags, 0o600, text=path)
                        self.assertIn(result, (-errno.EACCES, -errno.ENOENT, -errno.EROFS), path)
                    result = traced.call(main, 263, descriptor, None, 0, text=b"../other")
                    self.assertIn(result, (-errno.EACCES, -errno.ENOENT, -errno.EROFS))
            self.assertEqual((directory / "other").read_text(encoding="ascii"), "kept")
            self.assertFalse((directory / "new").exists())


    def test_what_is_allowed_is_opened_and_nothing_beside_it(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            (directory / "images/sub").mkdir(parents=True)
            files = [directory / file for file in ("other", "one", "two", "images/in", "images/sub/in")]
            for file in files:
                file.write_text("kept", encoding="ascii")
            (directory / "images/out").symlink_to("../other")
            (directory / "images/inner").symlink_to("sub/in")
            with self.vm("--allow-path", directory / "images", "--allow-path", directory / "one") as traced:
                main = traced.thread("vireo")
                held = {os.readlink(entry).rstrip("/"): int(entry.name)
                        for entry in pathlib.Path(f"/proc/{traced.pid}/fd").iterdir()}
                images = next(number for path, number in held.items() if path.endswith("/images"))
                beside = next(number for path, number in held.items() if path.endswith(f"/{directory.name}"))

                def opened(descriptor, path, flags):
                    return traced.call(main, 257, descriptor, None, flags, 0o600, text=path)
                for descriptor, path in ((images, b"in"), (images, b"sub/in"), (images, b"inner"), (beside, b"one"),
                                         (beside, b"images/in")):
                    self.assertGreaterEqual(opened(descriptor, path, os.O_RDWR), 0, path)
                refused = (-errno.EACCES, -errno.ENOENT, -errno.EROFS)
                for descriptor, path, flags in (
                        (images, b"out", os.O_RDONLY), (images, b"../other", os.O_RDONLY), (images, b"../other", os.O_RDWR),
                        (images, b"..", os.O_RDONLY), (images, b".", os.O_RDONLY | os.O_DIRECTORY),
                        (images, b"new", os.O_WRONLY | os.O_CREAT), (images, b"/etc/passwd", os.O_RDONLY),
                        (beside, b"two", os.O_RDONLY), (beside, b"two", os.O_RDWR)):
                    self.assertIn(opened(descriptor, path, flags), refused, path)
                self.assertIn(traced.call(main, 263, images, None, 0, text=b"in"), refused)  # unlinkat
            for file in files:
                self.assertEqual(file.read_text(encoding="ascii"), "kept")
            self.assertFalse((directory / "images/new").exists())


class Process(unittest.TestCase):
    def status(self, *options, **keywords):
        process = subprocess.Popen([VIREO, "run", "--kernel", PROBE, "--cmdline", "probe=echo", *options],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)
        process.stdout.readline()
        try:
            return {task.name: dict(re.findall(r"^(\w+):\s+(.*)$", (task / "status").read_text(encoding="ascii"),
                                               re.MULTILINE))
                    for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir()}, self.root(process.pid)
        finally:
            process.kill()
            process.communicate()

    @staticmethod
    def root(pid):
        try:
            return os.listdir(f"/proc/{pid}/root/")
        except PermissionError:
            return None

    def test_no_capabilities_no_privileges_filters_on_each_thread(self):
        tasks, root = self.status()
        # The kernel adds threads of its own, io_uring's and KVM's.
        tasks = {name: status for name, status in tasks.items() if status["Name"].startswith("vireo")}
        self.assertEqual(len(tasks), 2, [status["Name"] for status in tasks.values()])
        for status in tasks.values():
            self.assertEqual((status["NoNewPrivs"], status["Seccomp"], status["Seccomp_filters"]), ("1", "2", "2"))
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                self.assertEqual(int(status[name], 16), 0, name)
        if os.geteuid() == 0:
            self.assertEqual(root, [])

    def test_off(self):
        tasks, _ = self.status("--sandbox", "off")
        for status in tasks.values():
            self.assertEqual(status["Seccomp_filters"], "0")


class AsRoot(unittest.TestCase):
    def test_as_an_ordinary_user_and_in_an_empty_chroot(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            directory.chmod(0o755)
            (directory / "dev").mkdir()
            os.mknod(directory / "dev/kvm", 0o20666, os.stat("/dev/kvm").st_rdev)
            (directory / "dev/kvm").chmod(0o666)
            for file, source in (("vireo", VIREO), ("probe", PROBE)):
                (directory / file).write_bytes(pathlib.Path(source).read_bytes())
                (directory / file).chmod(0o755)
            for user in (0, 65534):
                def jailed(user=user):
                    os.chroot(directory)
                    os.chdir("/")
                    os.setgroups([])
                    os.setresgid(user, user, user)
                    os.setresuid(user, user, user)
                done = subprocess.run(["/vireo", "run", "--kernel", "/probe", "--cmdline", "probe=hello end=poweroff"],
                                      preexec_fn=jailed, capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
                                      check=False)
                self.assertEqual((done.returncode, done.stdout), (0, b"probe: hello from CPL 3\r\n"), done)
                if user != 0:
                    self.assertIn(b"sandbox: without an empty root directory", done.stderr)
                    self.assertEqual(done.stderr.count(b" warning "), 1, done)

    def test_names_in_a_directory_of_somebody_else_go_too(self):
        """Without its capabilities root may not write there: it keeps the one that it needs."""
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            os.chown(directory, 65534, 65534)
            directory.chmod(0o755)
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff", "--control",
                            directory / "vm.sock", "--pid-file", directory / "pid")
            process.stdout.readline()
            process.communicate(b"q", timeout=20)
            self.assertEqual(process.returncode, 0)
            self.assertEqual(list(directory.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
