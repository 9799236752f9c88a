#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Disks as a user has them: threads, overlays, locks, a full file system, and what is refused."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_disk import job_values, pattern  # noqa: E402
from vireo_process import PROBE, TIMEOUT, VIREO, reap, run, start  # noqa: E402

SIZE = 4 << 20
# The probe reads no ACPI, and so is told where its virtio-mmio devices are.
ACPI = {"mmio": "acpi=off", "pci": "", "auto": ""}
ON_TRANSPORTS = ("mmio", "pci")


class DiskCase(unittest.TestCase):
    def setUp(self):
        # On a file system with direct I/O, which /tmp may not be.
        directory = tempfile.TemporaryDirectory(dir="/var/tmp")
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.image = self.directory / "image"
        self.image.write_bytes(pattern(0, SIZE // 512))

    def arguments(self, words, *options, disk="", transport="mmio", acpi=None, threads=0):
        config = self.directory / "vm.toml"
        config.write_text(f'[machine]\nmemory = "64M"\ntransport = "{transport}"\nio_threads = {threads}\n',
                          encoding="ascii")
        return ("run", config, "--kernel", PROBE, "--cmdline", f"probe=blk {words} end=poweroff {ACPI[transport] if acpi is None else acpi}",
                "--disk", f"id=d,path={self.image}{disk}", *options)

    def job(self, words, *options, **where):
        """The values of the job's line."""
        ended = run(*self.arguments(words, *options, **where))
        self.assertEqual(ended.status, 0, ended)
        values = job_values(ended.output)
        self.assertTrue(values, ended)
        return values

    def refused(self, status, *words, **where):
        ended = run(*self.arguments("", **where))
        self.assertEqual(ended.status, status, ended)
        self.assertEqual(ended.errors.count("\n"), 1, ended)
        for word in words:
            self.assertIn(word, ended.errors)


class Disk(DiskCase):
    def test_it_is_free_when_ctl_is_back(self):
        """Whoever ends a VM can have the next one upon its disk at once."""
        socket = self.directory / "vm.sock"
        for _ in range(5):
            process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo acpi=off", "--disk",
                            f"id=d,path={self.image}", "--control", socket)
            self.addCleanup(reap, process)
            while run("ctl", socket, "status").status != 0:
                self.assertIsNone(process.poll(), process)
            self.assertEqual(run("ctl", socket, "kill").status, 0)

    def test_threads_that_serve_queues(self):
        config = '[machine]\nio_threads = 2\nmemory = "64M"\n'
        for queues in (1, 4):
            with self.subTest(queues=queues):
                file = self.directory / "threads.toml"
                file.write_text(config, encoding="ascii")
                arguments = list(self.arguments("op=randread verify=1 depth=32 count=5000", disk=f",queues={queues}",
                                                transport="mmio" if queues == 1 else "auto"))
                arguments[1] = file
                ended = run(*arguments)
                self.assertEqual(ended.status, 0, ended)
                values = job_values(ended.output)
                # Several queues are what transport = "auto" takes PCI for.
                self.assertEqual((values["errors"], values["wrong"], values["transport"]),
                                 (0, 0, "mmio" if queues == 1 else "pci"))

    def test_a_disk_that_is_read_only_or_direct(self):
        values = self.job("op=randwrite count=50", disk=",readonly")
        self.assertEqual(values["errors"], 50)
        self.assertEqual(self.image.read_bytes(), pattern(0, SIZE // 512))
        values = self.job("op=randmix verify=1 bs=8192 depth=16 count=500 flush=50", disk=",direct")
        self.assertEqual((values["errors"], values["wrong"]), (0, 0))

    def test_an_overlay_keeps_what_a_guest_writes_and_leaves_the_base(self):
        overlay = self.directory / "clone"
        disk = f",overlay={overlay}"
        for transport in ON_TRANSPORTS:
            with self.subTest(transport=transport):
                overlay.unlink(missing_ok=True)
                self.job("op=write verify=1 bs=12288 depth=8 count=20 seed=9 flush=20", disk=disk, transport=transport)
                read = self.job("op=read verify=1 bs=12288 count=20 seed=9", disk=disk, transport=transport)
                self.assertEqual((read["errors"], read["wrong"]), (0, 0))
                # Not flushed, but the end of the VM does not lose it.
                self.job("op=write verify=1 bs=4096 count=8 seed=3", disk=disk, transport=transport)
                read = self.job("op=read verify=1 bs=4096 count=8 seed=3", disk=disk, transport=transport)
                self.assertEqual(read["wrong"], 0)
                self.assertEqual(self.image.read_bytes(), pattern(0, SIZE // 512))
                self.assertLess(overlay.stat().st_blocks * 512, SIZE // 2)
                self.assertEqual([path.name for path in self.directory.iterdir() if "new" in path.name], [])

    def shown(self, overlay):
        ended = run("disk", "info", overlay, "--json")
        self.assertEqual(ended.status, 0, ended)
        return json.loads(ended.output)

    def test_an_overlay_is_looked_at_committed_and_put_over_another_base(self):
        overlay = self.directory / "clone"
        disk = f",overlay={overlay}"
        self.job("op=write verify=1 bs=65536 count=4 seed=9", disk=disk)
        shown = self.shown(overlay)
        self.assertEqual((shown["size_bytes"], shown["written_bytes"]), (SIZE, 4 << 16))
        self.assertEqual(shown["base"], {"path": str(self.image), "size_bytes": SIZE, "format": "raw"})
        self.assertIn("written    262144 bytes", run("disk", "info", overlay).output)

        # Another base, some of which is the same.
        other = self.directory / "other"
        other.write_bytes(pattern(0, SIZE // 1024) + bytes(SIZE // 2))
        self.assertEqual(run("disk", "rebase", overlay, "--base", other).status, 0)
        self.assertEqual(self.shown(overlay)["written_bytes"], (4 << 16) + SIZE // 2)
        first, self.image = self.image, other
        read = self.job("op=read verify=1 bs=65536 count=4 seed=9", disk=disk)
        self.assertEqual(read["wrong"], 0)

        self.assertEqual(run("disk", "commit", overlay).status, 0)
        self.assertEqual(self.shown(overlay)["written_bytes"], 0)
        self.assertLess(overlay.stat().st_blocks * 512, 1 << 16)
        self.assertEqual(other.read_bytes(), pattern(0, 512, 9) + pattern(512, SIZE // 512 - 512))
        self.assertEqual(first.read_bytes(), pattern(0, SIZE // 512))

        moved = self.directory / "moved"
        other.rename(moved)
        self.assertEqual(run("disk", "commit", overlay).status, 66)
        self.assertEqual(run("disk", "rebase", overlay, "--base", moved, "--moved").status, 0)
        self.assertEqual(self.shown(overlay)["base"]["path"], str(moved))
        for words, status in ((("commit", self.image), 66), (("info", moved), 65), (("rebase", overlay), 64),
                              (("grow", overlay), 64), (("info", overlay, "--moved"), 64)):
            ended = run("disk", *words)
            self.assertEqual((ended.status, ended.errors.count("\n")), (status, 1), ended)

    def test_a_disk_is_one_vms_alone(self):
        with subprocess.Popen([VIREO, *map(str, self.arguments("op=randread ms=60000 pause=1"))],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as first:
            self.addCleanup(first.kill)
            self.assertIn(b"blk_state=begin", first.stdout.readline())
            held = f"disk \"d\": {self.image}: in use by process {first.pid}: "
            self.refused(71, held)
            self.refused(71, held, disk=",readonly")
            first.kill()
        self.job("op=randread count=1")

    def test_a_guest_without_acpi_has_no_pci_and_ten_lines(self):
        self.refused(78, "machine.transport", "acpi=off", transport="pci", acpi="acpi=off")
        more = [word for number in range(10) for word in ("--disk", f"id=more{number},path={self.image},readonly")]
        ended = run(*self.arguments("", *more[2:], disk=",readonly", transport="mmio"))
        self.assertEqual(ended.status, 0, ended)
        ended = run(*self.arguments("", *more, disk=",readonly", transport="mmio"))
        self.assertEqual((ended.status, ended.errors.count("\n")), (78, 1), ended)
        self.assertIn("lines for 10 devices of a guest with acpi=off", ended.errors)

    def test_what_is_no_disk_is_refused_by_its_name(self):
        self.image.unlink()
        self.refused(66, 'disk "d": ', "No such file or directory")
        self.image.write_bytes(b"x" * 1000)
        self.refused(65, 'disk "d": ', "its size is no multiple of 512 bytes; truncate --size=%512 pads it")
        self.image.write_bytes(b"")
        self.refused(65, 'disk "d": ', "it is empty")
        self.image.write_bytes(bytes(1 << 20))
        (self.directory / "other").write_bytes(bytes(1 << 16))
        self.refused(65, 'disk "d": ', "no overlay of vireo's", disk=f",overlay={self.directory}/other")
        self.assertEqual(sorted(path.name for path in self.directory.iterdir()), ["image", "other", "vm.toml"])

    def test_a_full_file_system_costs_the_requests_that_find_no_room(self):
        mount = self.directory / "full"
        mount.mkdir()
        self.image = mount / "image"
        # A mount namespace of its own, which an ordinary user may have too.
        prepare = 'mount -t tmpfs -o size=1M tmpfs "$1" && truncate -s 4M "$1/image" && shift && exec "$@"'
        for threads in (0, 1):
            arguments = self.arguments("op=write bs=4096 depth=8 count=1024", threads=threads)
            ended = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", prepare, "sh", mount, VIREO,
                                    *map(str, arguments)],
                                   capture_output=True, text=True, timeout=120, check=False)
            self.assertEqual(ended.returncode, 0, ended)
            values = job_values(ended.stdout)
            self.assertGreaterEqual(values["errors"], (SIZE - (1 << 20)) // 4096)
            self.assertLess(values["errors"], 1024)
            self.assertIn("a write failed: No space left on device", ended.stderr)


class Limits(DiskCase):
    SECONDS = 10

    def start(self, name, words, limit):
        config = self.directory / f"{name}.toml"
        config.write_text('[machine]\nmemory = "64M"\ntransport = "mmio"\n', encoding="ascii")
        process = start("run", config, "--kernel", PROBE, "--cmdline", f"probe=blk {words} end=poweroff acpi=off",
                        "--disk", f"id=d,path={self.image},readonly,{limit}")
        self.addCleanup(reap, process)
        return process

    def values_of(self, process):
        output, errors = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 0, errors.decode())
        return job_values(output.decode())

    @staticmethod
    def main_thread_seconds(process):
        """CPU time of the thread that serves the disk."""
        stat = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/stat").read_text(encoding="ascii")
        user, system = stat.rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def test_a_limit_holds_over_ten_seconds_and_who_waits_costs_nothing(self):
        # Who stands still for longer than a bucket takes to fill loses what would have flowed in meanwhile, and
        # three guests that poll are more than some machines have processors: so these take a second.
        words = f"op=randread depth=16 ms={1000 * self.SECONDS}"
        ops = self.start("ops", words, "rate_limit.ops.size=1000,rate_limit.ops.refill=1s")
        bytes_ = self.start("bytes", words + " bs=16384",
                            "rate_limit.bandwidth.size=10M,rate_limit.bandwidth.refill=1s")
        few = self.start("few", words, "rate_limit.ops.size=1,rate_limit.ops.refill=200ms")
        time.sleep(1)
        before = self.main_thread_seconds(few)
        time.sleep(self.SECONDS - 3)
        waited = self.main_thread_seconds(few) - before
        for process, size, a_second in ((ops, 1000, 1000), (bytes_, 640, 640)):
            values = self.values_of(process)
            seconds = values["ns"] / 1e9
            # A full bucket to begin with, and what flows in.
            wanted = size + a_second * seconds
            self.assertAlmostEqual(values["requests"] / wanted, 1, delta=0.05, msg=values)
        self.assertLess(waited, 0.05)
        self.values_of(few)


class AsRoot(DiskCase):
    def test_a_disk_that_does_not_answer_keeps_nobody_from_leaving(self):
        mount = self.directory / "frozen"
        mount.mkdir()
        room = self.directory / "room"
        subprocess.run(["truncate", "--size=64M", room], check=True)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", room], check=True)
        subprocess.run(["mount", "-o", "loop", room, mount], check=True)
        # The kernel closes what io_uring had open a moment after the process is gone.
        self.addCleanup(subprocess.run, ["umount", "--lazy", mount], check=True)
        # Where the main thread serves the disk, and where one of its own does.
        machines = [self.write_without_end(mount / f"image-{threads}", threads) for threads in (0, 1)]
        subprocess.run(["fsfreeze", "--freeze", mount], check=True)
        try:
            # The guests come to their ends in the middle of their writes.
            for _ in range(2):
                time.sleep(0.5)
                for process, _ in machines:
                    process.terminate()
            for process, pid_file in machines:
                for line in process.stderr:
                    if "a disk has not answered for 30s" in line:
                        break
                else:
                    self.fail("it did not tell")
                while pid_file.exists():
                    time.sleep(0.01)
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", mount], check=True)
        for process, _ in machines:
            self.assertEqual(process.wait(60), 0)

    def write_without_end(self, image, threads):
        """The process of a VM whose guest does so, and its pid file."""
        self.image = image
        image.write_bytes(bytes(SIZE))
        pid_file = image.parent.parent / f"pid-{threads}"
        arguments = self.arguments("op=randwrite depth=8 ms=600000 pause=1", "--pid-file", pid_file, threads=threads)
        process = subprocess.Popen([VIREO, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(reap, process)
        process.stdout.readline()
        return process, pid_file


if __name__ == "__main__":
    unittest.main()
