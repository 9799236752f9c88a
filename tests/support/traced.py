# SPDX-License-Identifier: Apache-2.0
"""A program under ptrace(2) that is made to make system calls of the test's own, on any thread: what a
guest that has taken the process over could do. Traced from its start, as its owner may."""
import contextlib
import ctypes
import os
import pathlib
import select
import signal
import struct
import time

WALL = 0x40000000
TRACEME, PEEKTEXT, CONT, SINGLESTEP, GETREGS, SETREGS, SETOPTIONS = 0, 1, 7, 9, 12, 13, 0x4200
OPTION_TRACECLONE, OPTION_EXITKILL = 0x8, 0x100000
# struct user_regs_struct of x86-64, in its order.
REGISTERS = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
             "fs_base gs_base ds es fs gs").split()
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, tid, address=None, data=None):
    ctypes.set_errno(0)
    result = LIBC.ptrace(request, tid, address, data)
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace {request}")
    return result


class Traced:
    """One process; `status` is what waitpid said when it ended."""

    def __init__(self, command):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(writer, 1)
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            ptrace(TRACEME, 0)
            os.execv(command[0], command)
        os.close(writer)
        self.output = reader
        self.status = None
        os.waitpid(self.pid, WALL)
        ptrace(SETOPTIONS, self.pid, None, OPTION_TRACECLONE | OPTION_EXITKILL)
        ptrace(CONT, self.pid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            while self.status is None:
                self.step()
        os.close(self.output)

    def step(self, flags=0):
        """Lets whoever has stopped go on; (thread, signal) of a stop that is SIGSTOP's, else None."""
        try:
            tid, status = os.waitpid(-1, WALL | flags)
        except ChildProcessError:
            self.status = self.status or 0
            return None
        if tid == 0:
            return None
        if not os.WIFSTOPPED(status):
            if tid == self.pid:
                self.status = status
            return None
        number = os.WSTOPSIG(status)
        if number == signal.SIGSTOP and tid in self.expected:
            return tid
        with contextlib.suppress(ProcessLookupError):
            # A clone's event and a new thread's first stop are no signals of its own.
            ptrace(CONT, tid, None, 0 if number in (signal.SIGTRAP, signal.SIGSTOP) else number)
        return None

    expected = frozenset()

    def wait_for(self, text, seconds=20):
        said = b""
        deadline = time.monotonic() + seconds
        while text not in said:
            if time.monotonic() > deadline or self.status is not None:
                raise AssertionError(f"{said} and no {text}; status {self.status}")
            self.step(os.WNOHANG)
            if select.select([self.output], [], [], 0.001)[0]:
                said += os.read(self.output, 4096)

    def thread(self, name):
        """The id of the thread of this name; the first one's is the program's."""
        for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir():
            if (task / "comm").read_text(encoding="ascii").strip() == name:
                return int(task.name)
        raise AssertionError(f"no thread is called {name}")

    def call(self, tid, number, *arguments, text=None, prepare=lambda: None, look=lambda: None):
        """Makes thread `tid` do one system call. Its result, or None where the process ended by it.
        `text`, if given, is put below the thread's stack, and stands for the argument None. `prepare`
        is called when the thread stands still before the call, `look` once after it, before it goes on."""
        self.expected = frozenset([tid])
        buffer = ctypes.create_string_buffer(8 * len(REGISTERS))
        while True:
            LIBC.tgkill(self.pid, tid, signal.SIGSTOP)
            while self.step() != tid:
                if self.status is not None:
                    raise AssertionError(f"ended with {self.status}")
            ptrace(GETREGS, tid, None, ctypes.addressof(buffer))
            before = dict(zip(REGISTERS, struct.unpack(f"{len(REGISTERS)}Q", buffer.raw)))
            # A thread that waits in the kernel has a syscall instruction behind it; both kinds do most of
            # the time.
            if ptrace(PEEKTEXT, tid, before["rip"] - 2) & 0xffff == 0x050f:
                break
            ptrace(CONT, tid)
        prepare()
        place = (before["rsp"] - 4096) & ~15
        if text is not None:
            data = text + b"\0" * (8 - len(text) % 8)
            for at in range(0, len(data), 8):
                ptrace(5, tid, place + at, struct.unpack_from("Q", data, at)[0])  # POKEDATA
        now = dict(before, rip=before["rip"] - 2, rax=number, orig_rax=(1 << 64) - 1)
        for register, argument in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments):
            now[register] = (place if argument is None else argument) & ((1 << 64) - 1)
        packed = ctypes.create_string_buffer(struct.pack(f"{len(REGISTERS)}Q", *now.values()))
        ptrace(SETREGS, tid, None, ctypes.addressof(packed))
        ptrace(SINGLESTEP, tid)
        while True:
            try:
                stopped, status = os.waitpid(-1, WALL)
            except ChildProcessError:
                return None
            if stopped == self.pid and not os.WIFSTOPPED(status):
                self.status = status
                return None
            if stopped == tid and os.WIFSTOPPED(status):
                break
            if os.WIFSTOPPED(status):
                ptrace(CONT, stopped, None, 0)
        ptrace(GETREGS, tid, None, ctypes.addressof(buffer))
        after = dict(zip(REGISTERS, struct.unpack(f"{len(REGISTERS)}Q", buffer.raw)))
        if os.WSTOPSIG(status) != signal.SIGTRAP:
            ptrace(CONT, tid, None, os.WSTOPSIG(status))
            while self.status is None:
                self.step()
            return None
        look()
        packed = ctypes.create_string_buffer(struct.pack(f"{len(REGISTERS)}Q", *before.values()))
        ptrace(SETREGS, tid, None, ctypes.addressof(packed))
        ptrace(CONT, tid)
        result = after["rax"]
        return result - (1 << 64) if result >> 63 else result
