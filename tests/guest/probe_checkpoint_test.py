#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Disks that belong to a snapshot: frozen or copied while a guest writes to them, on this machine's KVM."""
import array
import hashlib
import json
import os
import pathlib
import socket
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_disk import job_values  # noqa: E402
from vireo_process import PROBE, TIMEOUT, reap, run, start  # noqa: E402

SIZE = 4 << 20
REFUSED, USAGE, DAMAGED, MISSING, CONFIG = 1, 64, 65, 66, 78
# A job that does not end before its limit is lifted, and reads back all that it wrote.
BUSY = "op=randmix verify=1 depth=8 count=6000 flush=16"
LIMIT = ",rate_limit.ops.size=10,rate_limit.ops.refill=100ms"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Checkpoints(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(dir="/var/tmp")
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.socket = self.directory / "vm.sock"
        self.image = self.directory / "image"
        self.image.write_bytes(bytes(SIZE))

    def begin(self, *arguments):
        self.process = start(*arguments, "--control", self.socket)
        self.addCleanup(reap, self.process)

    def vm(self, *options, disk="", transport="mmio", text="", words=BUSY):
        config = self.directory / "vm.toml"
        config.write_text(f'[machine]\nmemory = "64M"\ntransport = "{transport}"\n{text}', encoding="ascii")
        self.begin("run", config, "--kernel", PROBE, "--cmdline",
                   f"probe=blk pause=1 {words} end=poweroff {'acpi=off' if transport == 'mmio' else ''}",
                   "--disk", f"id=d,path={self.image}{disk}{LIMIT}", *options)
        while b"blk_state=begin" not in (line := self.process.stdout.readline()):
            self.assertTrue(line, "ended before it began")

    def restore(self, snapshot, *options):
        self.begin("restore", snapshot, *options)
        while run("ctl", self.socket, "status").status != 0:
            if self.process.poll() is not None:
                output, errors = self.process.communicate()
                self.fail((self.process.returncode, output, errors))

    def control(self, *words):
        done = run("ctl", self.socket, *words)
        ended = self.process.communicate() if done.status == 69 else None
        self.assertEqual(done.status, 0, (done, ended, self.process.returncode))
        return done

    def disk(self):
        return json.loads(self.control("config", "--json").output)["config"]["disk"][0]

    def finish(self):
        """What was written last is what is read."""
        self.control("drive", "d", "rate_limit=none")
        output, errors = self.process.communicate(timeout=TIMEOUT)
        self.assertEqual(self.process.returncode, 0, errors.decode())
        values = job_values(output.decode())
        self.assertEqual((values["errors"], values["wrong"], values["requests"]), (0, 0, 6000))

    def kill(self):
        self.control("kill")
        self.process.communicate(timeout=TIMEOUT)

    def names(self):
        return {path.name for path in self.directory.iterdir()} - {"vm.sock", "vm.toml"}

    def refused(self, status, *texts, words):
        ended = run(*words)
        self.assertEqual(ended.status, status, ended)
        self.assertEqual(len(ended.errors.splitlines()), 1, ended)
        for text in texts:
            self.assertIn(text, ended.errors)

    def test_frozen_under_a_busy_guest_again_and_again(self):
        for transport, options in (("mmio", ""), ("pci", ",direct")):
            with self.subTest(transport):
                self.vm(disk=options, transport=transport)
                below = self.image
                frozen = {}
                for name in ("one", "two", "three"):
                    self.control("snapshot", self.directory / f"{name}.vsnap", "--disks", "freeze")
                    frozen[below] = digest(below)
                    self.assertEqual(self.disk()["path"], str(below))
                    below = self.directory / f"{name}.d.overlay"
                    self.assertEqual(self.disk()["overlay"], str(below))
                self.finish()
                # Each as often as one likes, and beside each other's files.
                for name in ("one", "two", "three"):
                    for clone in ("a", "b"):
                        overlay = self.directory / f"{name}.{clone}"
                        self.restore(self.directory / f"{name}.vsnap", "--disk", f"id=d,overlay={overlay}")
                        self.finish()
                        self.refused(DAMAGED, 'disk "d" is another file', "--stale-disk d",
                                     words=("restore", self.directory / f"{name}.vsnap", "--disk",
                                            f"id=d,overlay={overlay}"))
                for path, was in frozen.items():
                    self.assertEqual(digest(path), was, path)
                for name in self.names() - {"image"}:
                    (self.directory / name).unlink()
                self.image.write_bytes(bytes(SIZE))

    def test_a_template_and_its_clones_at_once(self):
        """Nothing is left beside the snapshot and the image, which all clones lie over."""
        self.vm()
        template = self.directory / "template.vsnap"
        self.control("snapshot", template, "--disks", "freeze", "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        self.assertEqual(self.names(), {"image", "template.vsnap"})
        self.refused(CONFIG, 'disk "d"', "frozen", "--disk id=d,overlay=", words=("restore", template))
        was = digest(self.image)
        clones = []
        for number in range(4):
            self.socket = self.directory / f"{number}.sock"
            self.restore(template, "--disk", f"id=d,overlay={self.directory / str(number)}")
            clones.append((self.socket, self.process))
        for self.socket, self.process in clones:
            self.finish()
        self.assertEqual(digest(self.image), was)
        # A snapshot of a clone lies over the clone's overlay.
        self.socket = self.directory / "vm.sock"
        self.restore(template, "--disk", f"id=d,overlay={self.directory / 'fifth'}")
        self.control("snapshot", self.directory / "next.vsnap", "--disks", "freeze", "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        self.restore(self.directory / "next.vsnap", "--disk", f"id=d,overlay={self.directory / 'sixth'}")
        self.assertEqual((self.disk()["path"], self.disk()["base_format"]), (str(self.directory / "fifth"), "overlay"))
        self.finish()

    def test_what_is_frozen_and_what_lies_over_it_starts_again(self):
        self.vm()
        self.control("snapshot", self.directory / "one.vsnap", "--disks", "freeze")
        self.control("snapshot", self.directory / "two.vsnap", "--disks", "freeze", "--disk-files",
                     f"d={self.directory / 'top'}")
        self.finish()
        below, top = self.directory / "one.d.overlay", self.directory / "top"
        shown = json.loads(run("disk", "info", top, "--json").output)
        self.assertEqual(shown["base"], {"path": str(below), "size_bytes": SIZE, "format": "overlay"})
        disk = f"id=d,path={below},overlay={top}"
        read = ("--cmdline", "probe=blk op=read count=1024 acpi=off end=poweroff")
        for words in ((), (",base_format=overlay",)):
            ended = run("run", "--kernel", PROBE, *read, "--disk", disk + "".join(words))
            self.assertEqual((ended.status, job_values(ended.output)["errors"]), (0, 0), ended)
        self.refused(CONFIG, "base_format", "another overlay",
                     words=("run", "--kernel", PROBE, "--disk", disk + ",base_format=raw"))
        self.refused(DAMAGED, "no overlay of vireo's",
                     words=("run", "--kernel", PROBE, "--disk",
                            f"id=d,path={self.image},overlay={self.directory / 'new'},base_format=overlay"))
        self.assertFalse((self.directory / "new").exists())
        # Folded into one image, which has it all.
        for path in (top, below):
            self.assertEqual(run("disk", "commit", path).status, 0)
        self.assertGreater(len(set(self.image.read_bytes())), 1)

    def test_a_frozen_disk_that_moved_on_is_refused(self):
        self.vm()
        snapshot = self.directory / "one.vsnap"
        self.control("snapshot", snapshot, "--disks", "freeze", "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        with open(self.image, "r+b") as file:
            file.write(b"b")
        overlay = self.directory / "overlay"
        self.refused(DAMAGED, 'disk "d" was written to', "--stale-disk d",
                     words=("restore", snapshot, "--disk", f"id=d,overlay={overlay}"))
        self.assertFalse(overlay.exists())

    def test_an_overlay_that_is_gone_is_not_made_anew(self):
        overlay = self.directory / "overlay"
        self.vm(disk=f",overlay={overlay}")
        snapshot = self.directory / "one.vsnap"
        self.control("snapshot", snapshot, "--then", "stop")
        self.process.communicate(timeout=TIMEOUT)
        overlay.rename(self.directory / "moved")
        self.refused(MISSING, str(overlay), "--disk id=d,overlay=", words=("restore", snapshot))
        self.assertFalse(overlay.exists())
        self.restore(snapshot, "--disk", f"id=d,overlay={self.directory / 'moved'}")
        self.finish()

    def test_volumes_and_read_only_disks(self):
        volume, fixed = self.directory / "volume", self.directory / "fixed"
        volume.write_bytes(bytes(16 << 20))
        os.truncate(volume, 16 << 20)
        fixed.write_bytes(bytes(SIZE))
        self.vm("--disk", f"id=fixed,path={fixed},readonly", "--volume", f"id=v,path={volume},size=16M")
        self.control("snapshot", self.directory / "one.vsnap", "--disks", "freeze")
        self.assertEqual(self.names(), {"image", "volume", "fixed", "one.vsnap", "one.d.overlay", "one.v.overlay"})
        config = json.loads(self.control("config", "--json").output)["config"]
        self.assertEqual([disk["id"] for disk in config["disk"]], ["d", "fixed", "v"])
        self.assertNotIn("volume", config)
        self.finish()
        self.restore(self.directory / "one.vsnap", "--disk", f"id=d,overlay={self.directory / 'a'}", "--disk",
                     f"id=v,overlay={self.directory / 'b'}")
        self.finish()

    def test_what_cannot_be_is_refused_and_leaves_nothing(self):
        self.vm()
        (self.directory / "taken").write_bytes(b"mine")
        snapshot = self.directory / "one.vsnap"

        def save(*words):
            return "ctl", self.socket, "snapshot", snapshot, *words
        self.refused(REFUSED, "disks: missing", "freeze", "reflink", "none", words=save())
        # ext4 and tmpfs share no blocks.
        self.refused(REFUSED, 'disk "d": reflink', "freeze", words=save("--disks", "reflink"))
        self.refused(71, "taken already", "--disk-files d=", words=save(
            "--disks", "freeze", "--disk-files", f"d={self.directory / 'taken'}"))
        self.refused(USAGE, "no disk that the VM writes", words=save(
            "--disks", "freeze", "--disk-files", f"other={self.directory / 'x'}"))
        self.refused(USAGE, "--disk-files", words=save("--disk-files", "d=x"))
        self.refused(MISSING, "none/x", words=save(
            "--disks", "freeze", "--disk-files", f"d={self.directory}/none/x"))
        self.assertEqual((self.names(), (self.directory / "taken").read_bytes()), ({"image", "taken"}, b"mine"))
        self.assertNotIn("overlay", self.disk())
        self.finish()

    def test_several_threads(self):
        """An overlay has one; a disk whose queues have several is not frozen."""
        self.vm(disk=",queues=2", text="io_threads = 2\n")
        self.refused(REFUSED, 'disk "d": freeze', "disk.queues = 1",
                     words=("ctl", self.socket, "snapshot", self.directory / "one.vsnap", "--disks", "freeze"))
        self.kill()
        self.vm(text="io_threads = 2\n")
        self.control("snapshot", self.directory / "one.vsnap", "--disks", "freeze")
        self.finish()
        self.restore(self.directory / "one.vsnap", "--disk", f"id=d,overlay={self.directory / 'a'}")
        self.finish()

    def request(self, body, files):
        """The answer to a snapshot that is asked for without vireo ctl."""
        text = json.dumps(body).encode()
        head = f"POST /vireo/snapshot HTTP/1.1\r\nHost: v\r\nContent-Length: {len(text)}\r\n\r\n".encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(str(self.socket))
            fds = array.array("i", [file.fileno() for file in files])
            client.sendmsg([head + text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if files else [])
            answer = b""
            while b"\r\n\r\n" not in answer or not answer.rstrip().endswith(b"}"):
                answer += client.recv(65536)
        return answer.split(b" ")[1], json.loads(answer.split(b"\r\n\r\n", 1)[1])

    def test_requests_without_the_files_that_they_need(self):
        self.vm()
        overlay = self.directory / "overlay"
        with open("/dev/full", "wb") as full, open(overlay, "x+b") as made:
            status, answer = self.request({"disks": "freeze", "disk_files": [{"id": "d", "path": str(overlay)}]},
                                          [full, made])
            self.assertEqual(status, b"400", answer)  # no regular file
        overlay.unlink()
        for files, text in (([], "beside the request"), (["s"], "none for it"), (["s", "o", "p"], "disk_files")):
            opened = [open(self.directory / name, "w+b") for name in files]  # pylint: disable=consider-using-with
            entries = [{"id": "d", "path": str(self.directory / name)} for name in files[1:2]]
            status, answer = self.request({"disks": "freeze", "disk_files": entries}, opened)
            for file in opened:
                file.close()
            self.assertEqual(status, b"400", answer)
            self.assertIn(text, answer["error"])
        self.assertNotIn("overlay", self.disk())
        self.finish()


if __name__ == "__main__":
    unittest.main()
