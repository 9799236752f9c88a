# SPDX-License-Identifier: Apache-2.0
"""Runs vireo as a user would, for tests: what it printed, and with which status it ended."""
import contextlib
import ctypes
import os
import pathlib
import pty
import struct
import subprocess

VIREO = os.environ.get("VIREO_BINARY", "")
PROBE = os.environ.get("VIREO_PROBE", "")
ARTIFACTS = os.environ.get("VIREO_ARTIFACTS", "")


def is_sanitized():
    """Whether the program is one with sanitizers: those keep freed memory, and no sandbox."""
    try:
        return b"__asan_init" in pathlib.Path(VIREO).read_bytes()
    except OSError:
        return False  # nobody runs it: suites are listed before it is built


class Ended:
    """A process that is over."""

    def __init__(self, status, output, errors):
        self.status = status
        self.output = output
        self.errors = errors

    def __repr__(self):
        return f"status {self.status}\n--- stdout\n{self.output[-3000:]}\n--- stderr\n{self.errors}"


# Long enough for a kernel that is unpacked for the first time, emulated, on a machine with much else
# to do: minutes then. It ends what hangs and measures nothing.
TIMEOUT = 500 if os.environ.get("VIREO_IN_TEST_HOST") else 120


def run(*arguments, stdin=b"", timeout=TIMEOUT, **options):
    """vireo with `arguments`, fed `stdin`; it must end within `timeout` seconds of this machine."""
    try:
        done = subprocess.run([VIREO, *map(str, arguments)], input=stdin, capture_output=True,
                              timeout=timeout, check=False, **options)
    except subprocess.TimeoutExpired as late:
        said = b"\n--- stderr\n".join(part or b"" for part in (late.stdout, late.stderr))
        raise AssertionError(f"not over after {timeout} s; the end of what it said:\n"
                             f"{said[-3000:].decode(errors='replace')}") from None
    return Ended(done.returncode, done.stdout.decode(errors="replace"),
                 done.stderr.decode(errors="replace"))


def forbidding(syscall, error, arguments=None):
    """A preexec_fn after which system call number `syscall` fails with `error`, as in a container
    whose seccomp profile does not have it; where `arguments` (a value for each index) are given, only
    calls with these. Error 0 makes the call return 0 without being made."""
    return forbidding_each((syscall, error, arguments or {}))


def forbidding_each(*rules):
    """The same for several (syscall, error, arguments)."""
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    errno_action, allow = 0x00050000, 0x7fff0000  # SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW

    def filter_of(syscall, error, arguments):
        # offsets in struct seccomp_data: nr, then the lower halves of the arguments
        wanted = [(0, syscall)] + [(16 + 8 * index, value) for index, value in arguments.items()]
        instructions = []
        for place, (offset, value) in enumerate(wanted):
            behind = 2 * (len(wanted) - place) - 1
            instructions += [(load, 0, 0, offset), (equal, 0, behind, value)]
        return instructions + [(answer, 0, 0, errno_action | error)]

    def install():
        instructions = [each for rule in rules for each in filter_of(*rule)]
        instructions.append((answer, 0, 0, allow))
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
        filters = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(instructions), ctypes.addressof(filters))
        libc = ctypes.CDLL(None, use_errno=True)
        no_new_privs, set_seccomp, filter_mode = 38, 22, 2
        if libc.prctl(no_new_privs, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, program):
            raise OSError(ctypes.get_errno(), "prctl")
    return install


def said_on_terminal(*arguments, **options):
    """What vireo says on a terminal that is its stderr."""
    ours, terminal = pty.openpty()
    process = subprocess.Popen([VIREO, *map(str, arguments)], stdin=subprocess.DEVNULL, stderr=terminal,
                               stdout=subprocess.DEVNULL, **options)
    os.close(terminal)
    text = b""
    try:
        while piece := os.read(ours, 4096):
            text += piece
    except OSError:  # EIO: nobody has the other end any more
        pass
    os.close(ours)
    process.wait(TIMEOUT)
    return text.decode().replace("\r\n", "\n")


def start(*arguments, **options):
    """vireo in the background, with pipes."""
    return subprocess.Popen([VIREO, *map(str, arguments)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def reap(process):
    """Ends what start() began, however far it came."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.communicate()
