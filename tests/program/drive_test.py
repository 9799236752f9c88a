#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`vireo ctl drive`: a disk's size, file and limits, while its guest uses it."""
import array
import fcntl
import http.client
import json
import os
import pathlib
import socket
import struct
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_disk import job_values, pattern  # noqa: E402
from vireo_process import PROBE, TIMEOUT, reap, run, start  # noqa: E402

SIZE = 4 << 20
# A job that does not end before its limit is lifted, however long a test takes.
BUSY = "depth=16 count=60000"
LIMIT = ",rate_limit.ops.size=100,rate_limit.ops.refill=100ms"


def lockable(path):
    """Whether nobody else holds the image."""
    with open(path, "rb") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(file, 37, lock)  # F_OFD_SETLK
        except BlockingIOError:
            return False
    return True


class DriveCase(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(dir="/var/tmp")
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.socket = self.directory / "vm.sock"
        self.image = self.make("image")

    def make(self, name, size=SIZE):
        path = self.directory / name
        path.write_bytes(pattern(0, size // 512))
        return path

    def vm(self, words, *options, disk="", transport="mmio", text=""):
        """A VM whose guest has begun its job on the disk."""
        config = self.directory / "vm.toml"
        config.write_text(f'[machine]\nmemory = "64M"\ntransport = "{transport}"\n{text}', encoding="ascii")
        process = start("run", config, "--kernel", PROBE, "--control", self.socket, "--cmdline",
                        f"probe=blk pause=1 {words} end=poweroff {'acpi=off' if transport == 'mmio' else ''}",
                        "--disk", f"id=d,path={self.image}{disk}", *options)
        self.addCleanup(reap, process)
        while b"blk_state=begin" not in (line := process.stdout.readline()):
            self.assertTrue(line, "ended before it began")
        return process

    def ended(self, process):
        output, errors = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 0, errors.decode())
        return job_values(output.decode())

    def finished(self, process):
        """What a busy guest's job has come to."""
        self.changed("rate_limit=none")
        return self.ended(process)

    def killed(self, process):
        self.assertEqual(run("ctl", self.socket, "kill").status, 0)
        process.communicate(timeout=TIMEOUT)

    def drive(self, *words):
        return run("ctl", self.socket, "drive", *words)

    def changed(self, *words):
        done = self.drive("d", *words, "--json")
        self.assertEqual(done.status, 0, done)
        return json.loads(done.output)

    def config(self):
        return json.loads(run("ctl", self.socket, "config", "--json").output)["config"]


class Drive(DriveCase):
    def test_another_file_under_a_busy_guest(self):
        other = self.make("other")
        for transport, disk in (("mmio", ""), ("pci", ",direct")):
            with self.subTest(transport=transport):
                process = self.vm(f"op=randread verify=1 {BUSY}", disk=disk + LIMIT, transport=transport)
                for path, old in 5 * ((other, self.image), (self.image, other)):
                    self.assertEqual(self.changed(f"path={path}"),
                                     {"version": 1, "id": "d", "path": str(path), "size_bytes": SIZE})
                    self.assertEqual(self.config()["disk"][0]["path"], str(path))
                values = self.finished(process)
                self.assertEqual((values["errors"], values["wrong"], values["requests"]), (0, 0, 60000))

    def test_what_is_left_is_whole_and_free_and_what_comes_is_locked(self):
        for threads in (0, 1):
            other = self.directory / "other"
            other.write_bytes(bytes(SIZE))
            process = self.vm(f"op=randwrite verify=1 {BUSY}", disk=LIMIT, text=f"io_threads = {threads}\n")
            self.assertFalse(lockable(self.image))
            self.changed(f"path={other}")
            self.assertTrue(lockable(self.image))
            self.assertFalse(lockable(other))
            kept = self.image.read_bytes()
            refused = self.drive("d", f"path={other}")
            self.assertEqual(refused.status, 1, refused)
            self.assertIn("in use by this VM", refused.errors)
            values = self.finished(process)
            self.assertEqual((values["errors"], values["wrong"], values["requests"]), (0, 0, 60000))
            self.assertTrue(self.image.read_bytes() == kept)
            self.assertTrue(any(other.read_bytes()))

    def test_limits_come_and_go(self):
        process = self.vm("op=randread depth=4 count=2000", disk=",rate_limit.ops.size=1,rate_limit.ops.refill=1h")
        self.assertEqual(self.config()["disk"][0]["rate_limit"], {"ops": {"size": 1, "refill": "1h"}})
        self.changed("rate_limit.ops.size=5,rate_limit.ops.refill=10s,rate_limit.bandwidth.size=1G,"
                     "rate_limit.bandwidth.refill=1s")
        self.assertEqual(self.config()["disk"][0]["rate_limit"],
                         {"ops": {"size": 5, "refill": "10s"}, "bandwidth": {"size": "1G", "refill": "1s"}})
        self.changed("rate_limit.bandwidth=none")
        self.assertEqual(self.config()["disk"][0]["rate_limit"], {"ops": {"size": 5, "refill": "10s"}})
        self.assertEqual(self.finished(process)["errors"], 0)

    def test_a_guest_that_waits_for_tokens_goes_on_without_a_limit(self):
        process = self.vm("op=randread depth=4 count=2000", disk=",rate_limit.ops.size=1,rate_limit.ops.refill=1h")
        run("ctl", self.socket, "pause")
        self.changed("rate_limit=none")
        self.assertNotIn("rate_limit", self.config()["disk"][0])
        run("ctl", self.socket, "resume")
        self.assertEqual(self.ended(process)["requests"], 2000)

    def test_a_disk_grows(self):
        overlay = self.directory / "overlay"
        volume = self.directory / "volume"
        process = self.vm("op=randread ms=600000", "--disk", f"id=o,path={self.make('base')},overlay={overlay}",
                          "--disk", f"id=r,path={self.make('fixed')},readonly",
                          text=f'[[volume]]\nid = "v"\npath = "{volume}"\nsize = "16M"\n')
        self.assertEqual(self.changed("size=8M")["size_bytes"], 8 << 20)
        self.assertEqual(self.image.stat().st_size, 8 << 20)
        self.assertLess(self.image.stat().st_blocks * 512, 5 << 20)  # sparse
        self.assertEqual(self.drive("o", "size=12M").status, 0)
        self.assertEqual(self.drive("v", "size=32M").status, 0)
        self.assertEqual(self.config()["volume"][0]["size"], "32M")
        os.truncate(self.image, 16 << 20)
        self.assertEqual(self.changed()["size_bytes"], 16 << 20)
        for words, reason in ((("d", "size=4M"), "can only grow"), (("o", "size=1T"), "larger base"),
                              (("r", "size=8M"), "read-only"), (("v", "path=/dev/null"), "make it a disk")):
            refused = self.drive(*words)
            self.assertEqual((refused.status, refused.errors.count("\n")), (1, 1), refused)
            self.assertIn(reason, refused.errors)
        self.killed(process)
        shown = run("disk", "info", overlay, "--json")
        self.assertEqual(json.loads(shown.output)["size_bytes"], 12 << 20)
        # As a commit that was cut short leaves the base, and then once more whole.
        os.truncate(self.directory / "base", 12 << 20)
        self.assertEqual(run("disk", "commit", overlay).status, 0)
        self.assertEqual(json.loads(run("disk", "info", overlay, "--json").output)["base"]["size_bytes"], 12 << 20)
        os.truncate(self.directory / "base", 4 << 20)
        self.assertEqual(run("disk", "commit", overlay).status, 65)

    def test_what_cannot_be_is_refused_by_its_name(self):
        process = self.vm("op=randread ms=600000", "--disk",
                          f"id=o,path={self.make('base')},overlay={self.directory / 'overlay'}")
        pipe = self.directory / "pipe"
        os.mkfifo(pipe)
        (self.directory / "odd").write_bytes(bytes(1000))
        for words, status, reason in (
                (("x", "size=8M"), 1, '"x": no disk of this VM; it has d, o'),
                (("d", "size=lots"), 1, "size: "),
                (("d", "queues=2"), 1, "queues: stays as it is"),
                (("d", "colour=red"), 1, "colour"),
                (("d", "rate_limit.ops.size=5"), 1, "wants both size and refill"),
                (("d", "readonly"), 1, "readonly: stays as it is"),
                (("o", f"path={self.image}"), 1, "overlay"),
                (("d", f"path={pipe}"), 1, "neither a regular file nor a block device"),
                (("d", f"path={self.directory / 'odd'}"), 1, "multiple of 512"),
                (("d", f"path={self.directory / 'none'}"), 66, "No such file"),
                ((), 64, "wants the id"), (("d", "=", "more"), 64, "more")):
            with self.subTest(words):
                refused = self.drive(*words)
                self.assertEqual((refused.status, refused.errors.count("\n")), (status, 1), refused)
                self.assertIn(reason, refused.errors)
        self.assertEqual(run("ctl", self.socket, "status", "d").status, 64)
        self.killed(process)


class HttpCase(DriveCase):
    def post(self, body, files=()):
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.connect(str(self.socket))
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST /vireo/drive HTTP/1.1\r\nHost: vm\r\nContent-Length: {len(text)}\r\n\r\n".encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        connection.sendmsg([head + text], rights)
        response = http.client.HTTPResponse(connection)
        response.begin()
        answer = json.loads(response.read())
        response.close()
        connection.close()
        return response.status, answer


class Http(HttpCase):
    """What `vireo ctl` would not send."""

    def test_requests_that_are_none(self):
        process = self.vm("op=randread ms=600000")
        for body in (b"", b"[]", b"{", {}, {"id": 5}, {"id": "d", "size": 1.5}, {"id": "d", "size": -1}, {"id": "d", "size": SIZE},
                     {"id": "d", "size": {}}, {"id": "d", "path": None}, {"id": "d", "rate_limit": 5},
                     {"id": "d", "rate_limit": {"pace": {}}}, {"id": "d", "rate_limit": {"ops": {"size": {}}}}):
            with self.subTest(body=body):
                status, answer = self.post(body)
                self.assertEqual(status, 400, answer)
                self.assertNotIn("\n", answer["error"])
        self.killed(process)

    def test_descriptors_that_are_of_no_use(self):
        process = self.vm(f"op=randread verify=1 {BUSY}", disk=LIMIT)
        other = self.make("other")
        with open(other, "rb") as reading, open(other, "r+b") as both, socket.socket() as plain:
            self.assertIn("read and write",
                          self.post({"id": "d", "path": "/new"}, [reading.fileno()])[1]["error"])
            self.assertEqual(self.post({"id": "d", "path": "/new"}, [plain.fileno()])[0], 400)
            # Beside what takes none, and more than one: let go. Who kept one would keep its lock.
            fcntl.flock(both, fcntl.LOCK_EX)
            self.assertEqual(self.post({"id": "d"}, [both.fileno()])[0], 200)
            self.assertEqual(self.post({"id": "d"}, 5 * [both.fileno()])[0], 200)
        with open(other, "r+b") as both:
            fcntl.flock(both, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.assertEqual(self.post({"id": "d", "path": "/new"}, [both.fileno()])[0], 200)
        self.assertEqual(self.config()["disk"][0]["path"], "/new")
        values = self.finished(process)
        self.assertEqual((values["errors"], values["wrong"]), (0, 0))


class Allowed(HttpCase):
    """Files that a client names and does not open: sandbox.allow_paths."""

    def named(self, path):
        return self.post({"id": "d", "path": str(path)})

    def assert_on(self, path):
        self.assertEqual(self.named(path), (200, {"version": 1, "id": "d", "path": str(path), "size_bytes": SIZE}))

    def test_a_file_by_its_path(self):
        images = self.directory / "images"
        (images / "sub").mkdir(parents=True)
        inside = [self.make("images/one"), self.make("images/sub/two")]
        for transport, sandbox, disk in (("mmio", "on", ""), ("pci", "off", ",direct"), ("mmio", "on", ",readonly")):
            with self.subTest(transport=transport, sandbox=sandbox, disk=disk):
                process = self.vm(f"op=randread verify=1 {BUSY}", "--sandbox", sandbox, "--allow-path", images,
                                  disk=disk + LIMIT, transport=transport)
                for path in inside:
                    self.assert_on(path)
                    self.assertEqual(lockable(path), disk == ",readonly")
                self.assertTrue(lockable(inside[0]))
                values = self.finished(process)
                self.assertEqual((values["errors"], values["wrong"], values["requests"]), (0, 0, 60000))

    def test_ways_to_write_it_down(self):
        images = self.directory / "images"
        (images / "sub").mkdir(parents=True)
        self.make("images/one")
        (images / "sub/link").symlink_to("../one")
        (self.directory / "link").symlink_to("images")
        process = self.vm("op=randread ms=600000", "--allow-path", f"{self.directory}//link/./",
                          "--allow-path", self.image)
        one = f"{self.directory}/link/one"
        self.assert_on(one)
        for path in (f"/{self.directory}//link/./sub/../one", f"{self.directory}/link/sub/link"):
            self.assertIn("in use by this VM", self.named(path)[1]["error"])
            self.killed(process)
            process = self.vm("op=randread ms=600000", "--allow-path", self.directory / "link",
                              "--allow-path", self.image)
            self.assert_on(path)
        self.assert_on(self.image)
        # By another name than that which is allowed.
        self.assertEqual(self.named(images / "one")[0], 400)
        self.killed(process)

    def test_nothing_else(self):
        images = self.directory / "images"
        images.mkdir()
        other = self.make("other")
        for name, target in (("out", "../other"), ("far", other), ("loop", "loop"), ("up", "..")):
            (images / name).symlink_to(target)
        os.mkfifo(images / "pipe")
        (images / "odd").write_bytes(bytes(1000))
        self.make("images-2")
        given = self.make("given")
        process = self.vm("op=randread ms=600000", "--allow-path", images, "--allow-path", given)
        leads_out = f"leads out of {images}, which sandbox.allow_paths has"
        for path, reason in ((other, "not within sandbox.allow_paths; name a directory of it there, or send the open file"),
                             ("images/one", "not within sandbox.allow_paths"), ("", "path: wants a path"),
                             ("fd:0", "not within sandbox.allow_paths"), ("/", "not within sandbox.allow_paths"),
                             (f"{images}-2", "not within sandbox.allow_paths"),
                             (given / "x", "not within sandbox.allow_paths"),
                             (f"{images}/../other", leads_out), (images / "out", leads_out),
                             (images / "far", leads_out), (images / "up/other", leads_out),
                             (images / "loop", "Too many levels"), (images / "none", "No such file"),
                             (images, "directory"), (images / "pipe", "neither a regular file nor a block device"),
                             (images / "odd", "multiple of 512"), (images / "odd/x", "Not a directory")):
            with self.subTest(path):
                status, answer = self.named(path)
                self.assertEqual(status, 400, answer)
                self.assertIn(reason, answer["error"])
                self.assertNotIn("\n", answer["error"])
        # A file is the one that it was.
        given.rename(self.directory / "before")
        for make in (lambda: self.make("given"), lambda: given.symlink_to("before")):
            given.unlink(missing_ok=True)
            make()
            self.assertEqual(self.named(given)[0], 400)
        given.unlink()
        (self.directory / "before").rename(given)
        self.assert_on(given)
        self.killed(process)


if __name__ == "__main__":
    unittest.main()
