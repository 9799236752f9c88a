#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bad inputs through `vireo run`: each gives one line that names the cause, the right status, and
leaves no file, socket, descriptor or process behind."""
import errno
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import PROBE, VIREO, forbidding, run  # noqa: E402

USAGE, BAD_INPUT, MISSING, NO_KVM, SYSTEM, PERMISSION, CONFIG = 64, 65, 66, 69, 71, 77, 78


def elf(machine=62, kind=2, segments=(), entry=0x100000, header_count=None):
    """A 64-bit ELF file: `segments` are (type, offset, address, size in file, size in memory)."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56,
        len(segments) if header_count is None else header_count, 0, 0, 0)
    body = b"".join(struct.pack("<IIQQQQQQ", kind, 5, offset, address, address, size, memory, 4096)
                    for kind, offset, address, size, memory in segments)
    return header + body


def bzimage(payload=b"", version=0x20f, flags=1):
    """A bzImage whose one piece of code is `payload`."""
    image = bytearray(1024)
    image[0x1f1] = 1
    struct.pack_into("<I", image, 0x1f4, (len(payload) + 512 + 15) // 16)
    struct.pack_into("<H", image, 0x1fe, 0xaa55)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    image[0x211] = 1
    struct.pack_into("<II", image, 0x230, 0x200000, 1)
    struct.pack_into("<HI", image, 0x236, flags, 2047)
    struct.pack_into("<IIQQI", image, 0x248, 512, len(payload), 0, 0x1000000, 0x2000000)
    return bytes(image) + bytes(512) + payload


def config_cases():
    """(name, TOML text, words of the message)"""
    return [
        ("unknown key", "[machine]\ncpu = 2\n", ["vm.toml:2", "machine.cpu", "did you mean"]),
        ("unknown table", "[machines]\ncpus = 2\n", ["vm.toml:1", "machines"]),
        ("wrong type", "[machine]\ncpus = \"2\"\n", ["vm.toml:2", "machine.cpus", "whole number"]),
        ("no unit", "[machine]\nmemory = \"512\"\n", ["vm.toml:2", "machine.memory", "suffix"]),
        ("number for size", "[machine]\nmemory = 512\n", ["machine.memory", "suffix"]),
        ("decimal unit", "[machine]\nmemory = \"512MB\"\n", ["machine.memory", "suffix"]),
        ("too little memory", "[machine]\nmemory = \"16M\"\n", ["machine.memory", "32M"]),
        ("too much memory", "[machine]\nmemory = \"2T\"\n", ["machine.memory", "1T"]),
        ("overflowing size", "[machine]\nmemory = \"99999999999T\"\n", ["machine.memory"]),
        ("0 vCPUs", "[machine]\ncpus = 0\n", ["machine.cpus", "1 to 64"]),
        ("1000 vCPUs", "[machine]\ncpus = 1000\n", ["machine.cpus", "1 to 64"]),
        ("topology", "[machine]\ncpus = 4\ntopology = { sockets = 3 }\n", ["machine.topology"]),
        ("unknown feature", "[machine]\ncpu_features = [\"-warp\"]\n",
         ["machine.cpu_features", "warp"]),
        ("unsigned feature", "[machine]\ncpu_features = [\"avx\"]\n", ["machine.cpu_features"]),
        ("feature not offered", "[machine]\ncpu_features = [\"+ia64\"]\n", ["ia64"]),
        ("huge pages", "[machine]\nhugepages = \"4M\"\n", ["machine.hugepages", "2M"]),
        ("uuid", "[machine]\nuuid = \"123\"\n", ["machine.uuid"]),
        ("later key", "[[net]]\nid = \"eth0\"\n", ["vm.toml:1", "net", "not yet supported"]),
        ("later value", "[ready]\nwhen = \"agent\"\n", ["ready.when", "not yet supported"]),
        ("later key of one of several", "[[volume]]\nid = \"v\"\nguest_path = \"/a\"\n",
         ["vm.toml:3: volume \"v\": guest_path: not yet supported"]),
        ("too many threads", "[machine]\nio_threads = 65\n", ["machine.io_threads", "0 to 64"]),
        ("one disk as a table", "[disk]\nid = \"a\"\n", ["vm.toml:1", "[[disk]]"]),
        ("disk without image", "[[disk]]\nid = \"a\"\n", ["disk \"a\"", "path"]),
        ("two disks of one id", "[[disk]]\nid = \"a\"\npath = \"x\"\n" * 2, ["disk \"a\"", "id"]),
        ("two root disks", "".join(f"[[disk]]\nid = \"{i}\"\npath = \"x\"\nroot = true\n" for i in "ab"),
         ["disk \"b\"", "root"]),
        ("seed of nothing", "[cloud_init]\n", ["cloud_init.user_data"]),
        ("broken TOML", "[machine\n", ["vm.toml:1"]),
        ("duplicate key", "[machine]\ncpus = 1\ncpus = 2\n", ["vm.toml:3"]),
        ("name", "name = \"-web\"\n", ["vm.toml:1", "name"]),
        ("serial mode", "[serial]\nmode = \"tty\"\n", ["serial.mode", "stdio"]),
        ("serial path missing", "[serial]\nmode = \"file\"\n", ["serial.path"]),
        ("serial path superfluous", "[serial]\nmode = \"pty\"\npath = \"x\"\n", ["serial.path"]),
        ("log level", "[log]\nlevel = \"loud\"\n", ["log.level", "debug"]),
        ("not UTF-8", b"name = \"\xff\xfe\"\n", ["vm.toml"]),
    ]


def kernel_cases():
    """(name, content of the kernel file, words of the message)"""
    load = (1, 4096, 0x1000000, 4096, 4096)
    endless = b"\x1f\x8b\x08\x00" + bytes(6)
    return [
        ("empty file", b"", []),
        ("random bytes", bytes(range(256)) * 64, []),
        ("text", b"#!/bin/sh\necho kernel\n", []),
        ("wrong architecture", elf(machine=183, segments=[load]) + bytes(8192), ["aarch64"]),
        ("32-bit ELF", b"\x7fELF\x01" + bytes(200), []),
        ("truncated ELF header", elf(segments=[load])[:40], []),
        ("truncated segment", elf(segments=[(1, 4096, 0x1000000, 1 << 20, 1 << 20)]), []),
        ("huge segment", elf(segments=[(1, 4096, 0x1000000, 1 << 62, 1 << 62)]) + bytes(8192), []),
        ("huge memory", elf(segments=[(1, 4096, 0x1000000, 4096, 1 << 62)]) + bytes(8192), []),
        ("overlapping segments", elf(segments=[load, (1, 4096, 0x1000800, 4096, 4096)]) +
         bytes(8192), []),
        ("more in file than memory", elf(segments=[(1, 0, 0x1000000, 4096, 16)]) + bytes(8192), []),
        ("no segments", elf() + bytes(8192), []),
        ("too many headers", elf(segments=[load], header_count=65535) + bytes(8192), []),
        ("no note", elf(segments=[load], entry=0x1000000) + bytes(8192), []),
        ("truncated bzImage", bzimage()[:600], []),
        ("old bzImage", bzimage(version=0x0201), []),
        ("bzImage without 64-bit entry", bzimage(flags=0), []),
        ("broken payload", bzimage(endless + os.urandom(4096) + b"\0\0\0\1"), []),
    ]


class BadInputs(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def refused(self, status, words, *arguments, **options):
        before = sorted(path.name for path in self.directory.iterdir())
        ended = run("run", *arguments, cwd=self.directory, **options)
        self.assertEqual(ended.status, status, ended)
        lines = ended.errors.splitlines()
        self.assertEqual(len(lines), 1, ended)
        self.assertTrue(lines[0].startswith("vireo: "), ended)
        for word in words:
            self.assertIn(word, lines[0])
        self.assertEqual(sorted(path.name for path in self.directory.iterdir()), before)
        alive = subprocess.run(["pgrep", "-f", str(self.directory)], capture_output=True, check=False)
        self.assertEqual(alive.stdout, b"")

    def file(self, name, content):
        path = self.directory / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def test_configurations(self):
        for name, text, words in config_cases():
            with self.subTest(name):
                self.refused(CONFIG, words, self.file("vm.toml", text), "--kernel", PROBE)

    def test_kernels(self):
        for name, content, words in kernel_cases():
            with self.subTest(name):
                self.refused(BAD_INPUT, ["boot.kernel", *words], "--kernel",
                             self.file("kernel", content), "--serial", "null")

    def test_command_lines(self):
        for arguments, words in [
                (["--cpus", "0"], ["--cpus"]), (["--cpus", "1000"], ["--cpus"]),
                (["--cpus", "two"], ["--cpus"]), (["--memory", "1"], ["--memory"]),
                (["--no-such-option"], ["--no-such-option"]), (["--disk", "x"], ["--disk"]), (["--disk", "id=a,queues=0"], ["--disk \"a\": queues"]),
                (["--serial", "file,paht=x"], ["--serial"]), (["--serial", ""], ["--serial"]),
                (["--log-level", "loud"], ["--log-level"]), (["--name", "."], ["--name"]),
                (["--kernel"], ["--kernel"])]:
            with self.subTest(arguments):
                self.refused(USAGE, words, "--kernel", PROBE, *arguments)

    def test_what_is_missing_or_not_allowed(self):
        self.refused(MISSING, ["no.toml"], "no.toml")
        self.refused(MISSING, ["boot.kernel", "nothing"], "--kernel", "nothing")
        self.refused(MISSING, ["boot.initramfs"], "--kernel", PROBE, "--initramfs", "nothing")
        self.refused(BAD_INPUT, ["boot.kernel"], "--kernel", self.directory)
        self.refused(BAD_INPUT, ["boot.kernel"], "--kernel", "/dev/zero")
        self.refused(CONFIG, ["boot.kernel"], "--memory", "64M")
        self.refused(MISSING, ["sandbox.allow_paths", "/nowhere"], "--kernel", PROBE, "--allow-path", "/nowhere")
        self.refused(CONFIG, ["sandbox.allow_paths", "/dev/zero"], "--kernel", PROBE, "--allow-path", "/dev/zero")
        self.refused(USAGE, ["--allow-path", "absolute"], "--kernel", PROBE, "--allow-path", "images")

    def test_initramfs_larger_than_memory(self):
        huge = self.directory / "initramfs"
        with open(huge, "wb") as file:
            file.truncate(1 << 30)
        ended = run("run", "--kernel", PROBE, "--initramfs", huge, "--memory", "64M")
        self.assertIn(ended.status, (BAD_INPUT, CONFIG), ended)
        self.assertIn("initramfs", ended.errors)

    def test_an_overlong_command_line_is_refused_never_cut(self):
        ended = run("run", "--kernel", PROBE, "--cmdline", "x" * 100000)
        self.assertEqual(ended.status, CONFIG, ended)
        self.assertIn("100000", ended.errors)

    def test_outputs_that_cannot_be_written(self):
        for option, value, word in (("--serial", "file,path=/nonexistent/x", "serial.path"),
                                    ("--log-file", "/nonexistent/x", "log.file"),
                                    ("--pid-file", "/nonexistent/x", "process.pid_file"),
                                    ("--timeline", "/nonexistent/x", "process.timeline"),
                                    ("--profile", "/nonexistent/x", "process.profile"),
                                    ("--timeline", "fd:77", "process.timeline")):
            with self.subTest(option):
                self.refused(MISSING, [word], "--kernel", PROBE, option, value)
        self.refused(CONFIG, ["serial.path"], "--kernel", PROBE, "--serial", f"unix,path={PROBE}")

    def test_a_full_disk_under_the_log_does_not_stop_the_vm(self):
        ended = run("run", "--kernel", PROBE, "--cmdline", "probe=hello", "--log-file", "/dev/full",
                    "--log-level", "debug")
        self.assertEqual(ended.status, 0, ended)

    def test_io_uring_is_forbidden(self):
        io_uring_setup = 425
        for error in (errno.EPERM, errno.ENOSYS):
            with self.subTest(errno.errorcode[error]):
                ended = run("run", "--kernel", PROBE, "--serial", "null",
                            preexec_fn=forbidding(io_uring_setup, error))
                self.assertEqual(ended.status, SYSTEM, ended)
                self.assertRegex(ended.errors, r"^vireo: io_uring .*allow it with .*\n$")

    def test_too_few_descriptors(self):
        def few():
            resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
        ended = run("run", "--kernel", PROBE, "--serial", "null", preexec_fn=few)
        self.assertEqual(ended.status, SYSTEM, ended)
        # A sanitizer that wants a descriptor for its own checks may complain before our line.
        self.assertIn("Too many open files", ended.errors.splitlines()[-1])

    def test_check_refuses_the_same_and_opens_nothing(self):
        for name, text, words in config_cases():
            if name in ("unknown feature", "feature not offered"):
                continue  # these want KVM's word
            with self.subTest(name):
                path = self.file("vm.toml", text)
                done = subprocess.run([VIREO, "check", str(path), "--kernel", "none"],
                                      capture_output=True, check=False)
                self.assertEqual(done.returncode, CONFIG, done)
                for word in words:
                    self.assertIn(word, done.stderr.decode())

    def test_check_prints_what_gives_the_same_again(self):
        path = self.file("vm.toml", "name = \"web-1\"\n[machine]\ncpus = 4\nmemory = \"1G\"\n"
                                    "[boot]\nkernel = \"k\"\nappend = \"quiet\"\n")
        first = subprocess.run([VIREO, "check", str(path)], capture_output=True, check=True).stdout
        again = self.file("again.toml", first)
        second = subprocess.run([VIREO, "check", str(again)], capture_output=True, check=True).stdout
        self.assertEqual(first, second)
        self.assertIn(b"memory = '1G'", first.replace(b'"', b"'"))


class AsRoot(unittest.TestCase):
    def test_kvm_without_permission(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            shutil.copy(VIREO, directory / "vireo")
            shutil.copy(PROBE, directory / "probe")
            os.chmod(directory, 0o755)
            done = subprocess.run([str(directory / "vireo"), "run", "--kernel",
                                   str(directory / "probe"), "--serial", "null"],
                                  user=65534, group=65534, extra_groups=[], capture_output=True,
                                  check=False, timeout=60, cwd=directory,
                                  env={"HOME": str(directory)})
            self.assertEqual(done.returncode, PERMISSION, done.stderr)
            self.assertIn(b"/dev/kvm", done.stderr)


if __name__ == "__main__":
    unittest.main()
