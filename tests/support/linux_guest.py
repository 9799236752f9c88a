# SPDX-License-Identifier: Apache-2.0
"""Linux guests that do what they are told on their console."""
import os
import pathlib
import re
import tempfile
import unittest

from vireo_process import ARTIFACTS, TIMEOUT, reap, start

INITRAMFS = f"{ARTIFACTS}/initramfs.cpio"


class Guest:
    """A Linux guest with `config`, which does what it is told on its console: the initramfs by itself,
    or the Debian on the disk that is root."""

    def __init__(self, test, directory, config, *options, debian=False, kernel="cloud"):
        file = directory / "vm.toml"
        file.write_text(config, encoding="ascii")
        self.test = test
        self.begin("run", file, "--kernel", f"{ARTIFACTS}/{kernel}/vmlinuz", "--initramfs", INITRAMFS,
                   "--append", "quiet" if debian else "quiet vireo.do=script", *options)
        if debian:
            self.log_in()
        self.read_until("script: ready")

    def begin(self, *arguments):
        """In this process, from here on."""
        self.process = start(*arguments)
        self.test.addCleanup(reap, self.process)
        self.said = ""

    def log_in(self):
        self.read_until(r"\S+ login: ")
        self.send("root")
        self.read_until(r"root@\S+:~# ")
        # The same that the initramfs does; the quotes keep the line's echo from being an answer.
        self.send("stty -echo; echo script: 'ready'; while read -r line && [ \"$line\" != quit ]; do "
                  "eval \"$line\"; echo \"script: $?\"; done; systemctl poweroff")

    def read_until(self, pattern):
        """What the guest says until `pattern` matches; the match's end is where the next begins."""
        while not (found := re.search(pattern, self.said)):
            data = os.read(self.process.stdout.fileno(), 4096)
            if not data:
                _, errors = self.process.communicate(timeout=TIMEOUT)
                raise AssertionError(f"it ended without {pattern}: {self.said[-3000:]}\n{errors.decode()}")
            self.said += data.decode(errors="replace").replace("\r", "")
        before, self.said = self.said[:found.start()], self.said[found.end():]
        return before.strip()

    def send(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def do(self, line, status=0):
        """What the line said, which must end with `status`."""
        self.send(line)
        output = self.read_until(r"script: (?=\d+\n)")
        ended = int(self.said.partition("\n")[0])
        self.read_until(r"\n")
        if ended != status:
            raise AssertionError(f"status {ended}, not {status}: {line}\n{output}")
        return output

    def quit(self):
        self.send("quit")
        self.end()

    def end(self):
        output, errors = self.process.communicate(timeout=TIMEOUT)
        if self.process.returncode != 0:
            raise AssertionError(f"status {self.process.returncode}\n{output.decode()}\n{errors.decode()}")


class InDirectory(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def image(self, name, size, byte=b"\0"):
        path = self.directory / name
        path.write_bytes(byte * size)
        return path
