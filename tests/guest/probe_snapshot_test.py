#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a guest that knows what it holds, from process to process, on this machine's KVM."""
import contextlib
import errno
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import unittest

SUPPORT = pathlib.Path(__file__).resolve().parents[1] / "support"
sys.path.insert(0, str(SUPPORT))
import vsnap_damage  # noqa: E402
from probe_hold import HoldTest  # noqa: E402
from vireo_process import TIMEOUT, forbidding, reap, run, start  # noqa: E402

LONG = "60000"  # a timer of that many ms does not come
TIMER_MS = 1500
IOCTL, PAGEMAP_SCAN = 16, 0xc0606610
MISSING, DAMAGED, REFUSED, USAGE, HOST_FAILED = 66, 65, 1, 64, 71


def read_by_its_description(path, memory=None):
    """What a reader that shares nothing with vireo finds; memory goes into that file."""
    done = subprocess.run([SUPPORT / "vsnap.py", path, *([memory] if memory else [])],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout


class Snapshots(HoldTest):
    def setUp(self):
        super().setUp()
        self.file = self.directory / "vm.vsnap"

    def move(self, *options):
        """The guest goes on in another process."""
        self.control("snapshot", self.file, "--then", "stop")
        output, errors = self.process.communicate(timeout=30)
        self.assertEqual((self.process.returncode, output), (0, b""), errors)
        self.begin("restore", self.file, *options)

    def test_nothing_is_lost(self):
        for memory in ("map", "fill", "copy"):
            with self.subTest(memory):
                self.start(f"{LONG} memory=8", "--rng")
                before = self.check()
                for _ in range(3):
                    self.move("--memory", memory)
                    after = self.check()
                    self.assertEqual(after["timer"], "0")  # still the first one, far from its time
                    for clock in ("tsc", "kvmclock_ns"):
                        self.assertGreater(int(after[clock]), int(before[clock]))
                    before = after
                self.quit()

    def test_a_clock_has_gone_on_meanwhile(self):
        self.start(LONG)
        before = self.check()
        begun = time.monotonic_ns()
        self.control("snapshot", self.file, "--then", "stop")
        self.process.wait()
        time.sleep(2)
        self.begin("restore", self.file)
        after = self.check()
        host = time.monotonic_ns() - begun
        guest = int(after["kvmclock_ns"]) - int(before["kvmclock_ns"])
        self.assertAlmostEqual(guest / 1e9, host / 1e9, delta=0.5)
        self.assertGreater(guest, 2e9)
        self.quit()

    def timer_comes_once(self, kind):
        self.start(f"{TIMER_MS} timer={kind}")
        first = self.check()
        if first["timer"] == "none":
            self.skipTest("this processor has no deadlines")
        self.move()
        end = time.monotonic() + 30
        while (found := self.check())["timer"] == "0":
            self.assertLess(time.monotonic(), end, "the timer does not come")
            time.sleep(0.05)
        self.assertEqual(found["timer"], "1")
        self.quit()

    def test_a_one_shot_timer_comes_once(self):
        self.timer_comes_once("oneshot")

    def test_a_deadline_comes_once(self):
        self.timer_comes_once("deadline")

    def test_the_guest_goes_on_after_its_snapshot(self):
        self.start(LONG)
        self.check()
        for paused in (False, True):
            if paused:
                self.control("pause")
            answer = self.control("snapshot", self.file)
            self.assertRegex(answer.output, r"uuid: [0-9a-f-]{36}\ndata_bytes: [1-9]\d*\npause_us: \d+\n")
            state = re.search("state: (.*)", self.control("status").output)[1]
            self.assertEqual(state, "paused" if paused else "running")
        self.control("resume")
        self.check()
        self.check()
        self.quit()
        # As it was then, and as often as one likes.
        for _ in range(2):
            self.begin("restore", self.file)
            self.checks = 1
            self.check()
            self.quit()

    @contextlib.contextmanager
    def checked_meanwhile(self):
        """The guest is looked at again and again, and so writes all of its memory anew."""
        stop = threading.Event()

        def work():
            while not stop.is_set():
                self.check()
        worker = threading.Thread(target=work)
        worker.start()
        try:
            yield
        finally:
            stop.set()
            worker.join()

    def test_memory_that_changes_while_it_is_saved(self):
        """What is restored is of one moment."""
        self.start(f"{LONG} memory=24")
        with self.checked_meanwhile():
            for number in range(6):
                time.sleep(0.07 * number)
                self.control("snapshot", self.directory / f"{number}.vsnap")
        self.quit()
        for number in range(6):
            self.begin("restore", self.directory / f"{number}.vsnap")
            # It may have been in a check, whose end comes first.
            self.process.stdin.write(b"cc")
            self.process.stdin.flush()
            for _ in range(2):
                lines = self.lines_to(r"probe: hold=\d+")
            self.checked(lines[-30:])
            self.process.kill()
            self.process.communicate()

    def snapshot(self, name, *words):
        file = self.directory / name
        self.control("snapshot", file, *words)
        return file

    def merge(self, *files):
        merged = self.directory / "merged.vsnap"
        done = run("snapshot", "merge", *files, "--output", merged)
        self.assertEqual((done.status, done.output, done.errors), (0, "", ""))
        return merged

    def memory(self, file):
        memory = self.directory / "memory.raw"
        read_by_its_description(file, memory)
        return memory.read_bytes()

    def chain(self, full, length):
        """Diffs, the guest at work in between; the last is taken at one pause with a full snapshot."""
        files = [full]
        for number in range(length):
            self.check()
            if number == length - 1:
                self.control("pause")
            files.append(self.snapshot(f"diff-{number}.vsnap", "--diff"))
        whole = self.snapshot("whole.vsnap")
        self.control("resume")
        self.quit()
        self.assertEqual(run("snapshot", "verify", *files, whole).status, 0)
        merged = self.merge(*files)
        self.assertTrue(self.memory(merged) == self.memory(whole), "the same memory by another way")
        self.assertLess(files[-1].stat().st_blocks, whole.stat().st_blocks)
        checks = self.checks
        for file in (merged, whole):
            self.begin("restore", file)
            self.checks = checks
            self.check()
            self.quit()
        return files

    def test_more_changes_than_the_limit_has(self):
        """A guest that never rests: it is told so, or stands still for it, or is waited for until it rests."""
        self.start(f"{LONG} memory=24")
        limits = ("--left", "4K", "--rounds", "1")
        with self.checked_meanwhile():
            # Between two checks it rests: one of many finds it at work.
            for _ in range(100):
                self.file.unlink(missing_ok=True)
                ended = run("ctl", self.socket, "snapshot", self.file, *limits, "--over", "refuse")
                if ended.status != 0:
                    break
            self.assertEqual(ended.status, REFUSED, ended)
            self.assertIn("last of 1 rounds", ended.errors)
            self.assertFalse(self.file.exists())
            self.control("snapshot", self.file, *limits)
            waiting = start("ctl", self.socket, "snapshot", self.file, *limits, "--over", "wait")
            self.addCleanup(reap, waiting)
        self.assertEqual(waiting.wait(TIMEOUT), 0)
        self.check()
        self.quit()
        self.begin("restore", self.file)
        self.checks -= 1
        self.check()
        self.quit()

    def test_diffs_by_the_log(self):
        config = self.directory / "vm.toml"
        config.write_text("[machine]\ntrack_dirty = true\n", encoding="ascii")
        self.start(f"{LONG} memory=8", config)
        files = self.chain(self.snapshot("full.vsnap"), 10)
        # In another order, or with one left out, they are refused.
        for wrong in ([files[0], files[2]], [files[1], files[2]], [files[0], files[0]]):
            done = run("snapshot", "merge", *wrong, "--output", self.directory / "no.vsnap")
            self.assertEqual(done.status, DAMAGED, done)
            self.assertFalse((self.directory / "no.vsnap").exists())
        ended = run("restore", files[1])
        self.assertEqual(ended.status, DAMAGED, ended)
        self.assertIn("vireo snapshot merge", ended.errors)

    def test_diffs_of_each_kind_of_memory(self):
        config = self.directory / "vm.toml"
        for key in ('hugepages = "transparent"', "mergeable = true", "prefault = true"):
            with self.subTest(key):
                config.write_text(f"[machine]\ntrack_dirty = true\n{key}\n", encoding="ascii")
                self.start(f"{LONG} memory=8", config)
                self.chain(self.snapshot("full.vsnap"), 2)

    def test_diffs_by_a_mapped_snapshot(self):
        """Found by the kernel, and by a look at each page where it cannot."""
        for others in ({}, {"preexec_fn": forbidding(IOCTL, errno.ENOTTY, {1: PAGEMAP_SCAN})}):
            self.start(f"{LONG} memory=8")
            self.control("snapshot", self.file, "--then", "stop")
            self.process.communicate()
            self.begin("restore", self.file, **others)
            self.chain(self.file, 3)

    def test_a_diff_that_would_not_be_exact_is_refused(self):
        self.start(LONG)
        for _ in range(2):
            ended = run("ctl", self.socket, "snapshot", self.directory / "d.vsnap", "--diff")
            self.assertEqual(ended.status, REFUSED, ended)
            self.assertIn("machine.track_dirty", ended.errors)
            self.control("snapshot", self.file)
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate()
        other = self.directory / "other.vsnap"
        self.begin("restore", self.file)
        self.control("snapshot", other)
        self.control("kill")
        self.process.communicate()
        for memory, parent, status in (("map", self.file, 0), ("map", other, REFUSED), ("copy", self.file, REFUSED),
                                       ("fill", self.file, REFUSED)):
            self.begin("restore", self.file, "--memory", memory)
            ended = run("ctl", self.socket, "snapshot", self.directory / "d.vsnap", "--diff", "--parent", parent)
            self.assertEqual(ended.status, status, (memory, parent, ended))
            self.control("kill")
            self.process.communicate()

    def test_a_file_that_is_cut_off_under_a_guest_is_named(self):
        self.start(f"{LONG} memory=8")
        self.check()
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate()
        whole = self.file.read_bytes()
        # Found by the guest, and by the thread that saves memory.
        other = self.directory / "other.vsnap"
        for asks in (lambda: None, lambda: run("ctl", self.socket, "snapshot", other)):
            self.file.write_bytes(whole)
            self.begin("restore", self.file)
            self.control("pause")
            os.truncate(self.file, 4096)
            asks()
            if self.process.poll() is None:
                run("ctl", self.socket, "resume")
            output, errors = self.process.communicate(b"c", timeout=60)
            self.assertEqual(self.process.returncode, HOST_FAILED, (output, errors))
            self.assertIn(f"{self.file}: guest memory could not be read from it any more".encode(), errors)

    def test_what_a_snapshot_is(self):
        self.start(LONG, "--name", "web")
        self.control("snapshot", self.file)
        told = run("snapshot", "info", self.file)
        self.assertRegex(told.output, r"^kind       full\nuuid       [0-9a-f-]{36}\ncreated    \d{4}-.*Z\nmemory     67108864 bytes: \d+ data, ")
        self.assertIn("section    x86-vcpu 0: version 1, ", told.output)
        found = json.loads(run("snapshot", "info", self.file, "--json").output)
        self.assertEqual(found["memory_bytes"], found["data_bytes"] + found["zero_bytes"])
        content = bytearray(self.file.read_bytes())
        content[-1] ^= 1
        self.file.write_bytes(content)
        ended = run("snapshot", "verify", self.file)
        self.assertEqual(ended.status, DAMAGED, ended)
        self.assertRegex(ended.errors, f"{self.file}: the page at \\d+: is damaged")

    def test_it_is_as_described(self):
        self.start(f"{LONG} memory=8", "--rng")
        self.check()
        self.control("pause")
        memories = []
        for number in range(2):
            file, memory = self.directory / f"{number}.vsnap", self.directory / f"{number}.raw"
            self.control("snapshot", file)
            said = read_by_its_description(file, memory)
            self.assertIn(f"pages={64 << 8} ", said)
            for section in ("machine,0", "x86-vcpu,0", "serial,0", "virtio-rng,0"):
                self.assertRegex(said, rf"section={section} version=\d+ bytes=[1-9]")
            memories.append(memory.read_bytes())
        self.assertTrue(any(memories[0]))
        self.assertTrue(memories[0] == memories[1], "the same memory twice")
        self.control("resume")
        self.quit()
        # What is restored and saved again without having run is the same, too.
        self.begin("restore", file)
        self.control("pause")
        self.control("snapshot", self.file)
        read_by_its_description(self.file)

    def test_a_disk_that_moved_on_is_refused(self):
        image = self.directory / "data.img"
        image.write_bytes(b"a" * (1 << 20))
        self.start(LONG, "--disk", f"id=data,path={image}")
        ended = run("ctl", self.socket, "snapshot", self.file)
        self.assertEqual(ended.status, REFUSED, ended)
        self.assertIn("disks: missing", ended.errors)

        def refused(text, *options):
            ended = run("restore", self.file, *options)
            self.assertEqual(ended.status, DAMAGED, ended)
            for part in (f'disk "data" {text}', "--disk id=data,path=", "go back", "--stale-disk data", str(self.file)):
                self.assertIn(part, ended.errors)

        def goes_on(*options):
            self.begin("restore", self.file, *options)
            self.control("kill")
            self.process.communicate()

        # The VM goes on with the disk: it may write at once.
        self.control("snapshot", self.file, "--disks", "none")
        self.control("snapshot", self.directory / "last.vsnap", "--then", "stop")
        self.process.communicate()
        refused("was written to")
        goes_on("--stale-disk", "data")
        copy = self.directory / "copy.img"
        copy.write_bytes(image.read_bytes())
        goes_on("--disk", f"id=data,path={copy}")

        self.file = self.directory / "last.vsnap"
        for _ in range(2):
            goes_on()
        with open(image, "r+b") as file:
            file.write(b"b")
        refused("was written to")
        os.truncate(image, 2 << 20)
        refused("has another size")
        image.unlink()
        copy.rename(image)
        refused("is another file")
        goes_on("--stale-disk", "data")
        ended = run("restore", self.file, "--stale-disk", "other")
        self.assertEqual(ended.status, USAGE, ended)

    def test_a_processor_that_lacks_what_the_guest_was_shown(self):
        """It is named; hidden, the guest goes on without it, and so do those that are made of it."""
        self.start(LONG)
        self.check()
        self.control("snapshot", self.file, "--then", "stop")
        self.process.communicate()
        file = vsnap_damage.File(self.file)
        cpuid = file.section(b"x86-cpuid")
        features, = (at for at in range(4, len(cpuid), 40) if cpuid[at:at + 4] == b"\1\0\0\0")
        cpuid[features + 24 + 3] |= 0x40  # EDX of leaf 1, bit 30: ia64
        self.file.write_bytes(file.bytes())
        ended = run("restore", self.file)
        self.assertEqual((ended.status, ended.errors.count("\n")), (DAMAGED, 1), ended)
        for part in (str(self.file), " with ia64, which ", "--cpu-mask"):
            self.assertIn(part, ended.errors)
        for wrong, status, part in (("-ia64", USAGE, "--cpu-mask"), ("", USAGE, "--cpu-mask"),
                                    ("ia64=1", USAGE, "--cpu-mask"), ("warp", 78, '"warp" is not the name')):
            ended = run("restore", self.file, f"--cpu-mask={wrong}")
            self.assertEqual((ended.status, ended.errors.count("\n")), (status, 1), ended)
            self.assertIn(part, ended.errors)
        self.begin("restore", self.file, "--cpu-mask", "ia64")
        self.check()
        again = self.directory / "again.vsnap"
        self.control("snapshot", again, "--then", "stop")
        self.process.communicate()
        checks = self.checks
        self.begin("restore", again)
        self.checks = checks
        self.check()
        self.quit()

    def test_a_file_that_is_no_whole_snapshot_is_refused(self):
        self.start(LONG)
        self.control("snapshot", self.file, "--then", "stop")
        whole = self.file.read_bytes()
        changed = self.directory / "changed.vsnap"

        def refused(content, text):
            changed.write_bytes(content)
            ended = run("restore", changed)
            self.assertEqual(ended.status, DAMAGED, (text, ended))
            self.assertRegex(ended.errors, text)
            self.assertIn(str(changed), ended.errors)

        refused(b"", "too short")
        refused(whole[:100], "too short")
        refused(whole[:-1], "truncated")
        refused(whole + b"x", "header")
        refused(b"x" * len(whole), "is no snapshot")
        refused(whole[:8] + b"\2" + whole[9:], "format version 2; this vireo reads versions up to 1")
        refused(whole[:0x30] + b"x" + whole[0x31:], "header: is damaged")
        refused(whole[:4100] + b"x" + whole[4101:], "section table: is damaged")
        refused(whole[:6000] + bytes([whole[6000] ^ 1]) + whole[6001:], "is damaged")
        memory = int.from_bytes(whole[0xb0:0xb8], "little")
        changed.write_bytes(whole[:memory] + bytes([whole[memory] ^ 1]) + whole[memory + 1:])
        ended = run("restore", changed, "--memory", "copy")
        self.assertEqual(ended.status, DAMAGED, ended)
        self.assertRegex(ended.errors, "page at .* damaged")

        ended = run("restore", self.directory / "none.vsnap")
        self.assertEqual(ended.status, MISSING, ended)

    def test_what_cannot_be_is_refused(self):
        self.start(LONG)
        for words, status, text in (
                (("snapshot",), USAGE, "wants the file"),
                (("snapshot", self.file, "--then", "fly"), USAGE, "wants resume or stop"),
                (("snapshot", self.file, "--disks", "eat"), USAGE, "wants freeze, reflink or none"),
                (("status", "--then", "stop"), USAGE, "only the verb snapshot"),
                (("snapshot", self.directory / "no" / "vm.vsnap"), MISSING, "No such file")):
            with self.subTest(words):
                ended = run("ctl", self.socket, *words)
                self.assertEqual(ended.status, status, ended)
                self.assertIn(text, ended.errors)
        self.control("snapshot", self.file)
        for words, text in ((("--disk", "id=x,path=y"), "it has none at all"),
                            (("--memory", "64M"), "wants map, fill or copy"),
                            (("--disk", "path=y"), "wants id="),
                            (("--cpus", "2"), "--cpus"),
                            (("--log-level", "loud"), "--log-level")):
            with self.subTest(words):
                ended = run("restore", self.file, *words)
                self.assertEqual(ended.status, USAGE, ended)
                self.assertIn(text, ended.errors)
        self.check()
        self.quit()

    def test_a_failed_one_leaves_the_old_one(self):
        self.start(f"{LONG} memory=8")
        self.file.write_bytes(b"the old one")
        # The file may not grow: writing it fails, in the VM's process.
        subprocess.run(["prlimit", "--fsize=1000000:unlimited", "--pid", str(self.process.pid)], check=True)
        ended = run("ctl", self.socket, "snapshot", self.file)
        self.assertEqual(ended.status, REFUSED, ended)
        self.assertIn("File too large", ended.errors)
        self.assertEqual(self.file.read_bytes(), b"the old one")
        self.assertEqual(sorted(os.listdir(self.directory)), ["vm.sock", "vm.vsnap"])
        self.check()
        subprocess.run(["prlimit", "--fsize=unlimited", "--pid", str(self.process.pid)], check=True)
        self.move()
        self.check()
        self.quit()


if __name__ == "__main__":
    unittest.main()
