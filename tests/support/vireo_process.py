# SPDX-License-Identifier: Apache-2.0
"""Runs vireo as a user would, for tests: what it printed, and with which status it ended."""
import os
import subprocess

VIREO = os.environ.get("VIREO_BINARY", "")
PROBE = os.environ.get("VIREO_PROBE", "")
ARTIFACTS = os.environ.get("VIREO_ARTIFACTS", "")


class Ended:
    """A process that is over."""

    def __init__(self, status, output, errors):
        self.status = status
        self.output = output
        self.errors = errors

    def __repr__(self):
        return f"status {self.status}\n--- stdout\n{self.output[-3000:]}\n--- stderr\n{self.errors}"


def run(*arguments, stdin=b"", timeout=120, **options):
    """vireo with `arguments`, fed `stdin`; it must end within `timeout` seconds of this machine."""
    done = subprocess.run([VIREO, *map(str, arguments)], input=stdin, capture_output=True,
                          timeout=timeout, check=False, **options)
    return Ended(done.returncode, done.stdout.decode(errors="replace"),
                 done.stderr.decode(errors="replace"))


def start(*arguments, **options):
    """vireo in the background, with pipes."""
    return subprocess.Popen([VIREO, *map(str, arguments)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
