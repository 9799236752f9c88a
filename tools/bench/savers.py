# SPDX-License-Identifier: Apache-2.0
"""VMMs that save a guest into files and restore it in another process: how each is told to."""
import contextlib
import ctypes
import dataclasses
import json
import os
import select
import socket
import subprocess
import time
import tty

IN_CREATE = 0x100
UPTIMES = 5  # how often vireo is asked for its uptime: the quickest answer is the exactest
STANDBY_SECONDS = 0.02  # from where it stands by to where it is told: it has nothing more to do
POLL_SECONDS = 0.001  # between bind() and listen() of a process that has just made its socket


@dataclasses.dataclass(frozen=True)
class Guest:
    """What is saved: a guest that says `ready`, waits, and answers what it is asked."""
    kernel: str
    words: str
    memory: int  # MiB
    ready: bytes
    question: bytes
    answer: bytes  # the end of it
    initramfs: str | None = None
    cpus: int = 1


class Failed(Exception):
    pass


def left_of(deadline):
    left = deadline - time.monotonic()
    if left <= 0:
        raise Failed("not over in time")
    return left


# --- HTTP over a socket of the VMM's ------------------------------------------------------------------------

def await_socket(path, process, deadline):
    """A connection, once the process listens. The kernel tells when the socket is made: who asks again and again
    takes the processor from the one that is to make it."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init()
    try:
        libc.inotify_add_watch(watch, os.fsencode(path.parent), IN_CREATE)
        while not path.exists():
            if process.poll() is not None:
                raise Failed(f"ended with status {process.returncode} before it listened")
            select.select([watch], [], [], min(left_of(deadline), 1.0))
    finally:
        os.close(watch)
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
            return client
        except ConnectionRefusedError:
            client.close()
            left_of(deadline)
            time.sleep(POLL_SECONDS)


def request_of(method, target, body=None):
    text = json.dumps(body) if body is not None else ""
    return (f"{method} {target} HTTP/1.1\r\nHost: vm\r\nAccept: application/json\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}").encode()


def read_answer(client, deadline):
    """The body of a good answer, as JSON where there is one."""
    data = bytearray()
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < length_of(data):
        client.settimeout(left_of(deadline))
        chunk = client.recv(65536)
        if not chunk:
            raise Failed(f"no answer: {bytes(data[:200])!r}")
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.split(b" ", 2)[1].startswith(b"2"):
        raise Failed(f"refused: {bytes(body[:300])!r}")
    return json.loads(body) if body else None


def length_of(data):
    for line in data.partition(b"\r\n\r\n")[0].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def ask(client, deadline, method, target, body=None):
    client.sendall(request_of(method, target, body))
    return read_answer(client, deadline)


# --- processes ----------------------------------------------------------------------------------------------

class Running:
    """A VMM's process with the guest's console on its standard input and output, which are pipes or a terminal; ended
    at the end, when `log` has all that it said."""

    def __init__(self, command, log, pass_fds=(), terminal=False):
        self.log = log
        self.said = bytearray()
        self.console, theirs = raw_terminal() if terminal else (None, subprocess.PIPE)
        with open(log, "wb") as errors:
            # CLOCK_MONOTONIC, just before exec.
            self.started_ns = time.monotonic_ns()
            self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=errors, pass_fds=pass_fds)
        if terminal:
            os.close(theirs)
        self.input, self.output = ((self.console, self.console) if terminal else
                                   (self.process.stdin.fileno(), self.process.stdout.fileno()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        if self.console is None:
            self.process.stdin.close()
            self.process.stdout.close()
        else:
            os.close(self.console)
        with open(self.log, "ab") as log:
            log.write(self.said)

    def send(self, text):
        os.write(self.input, text)

    def read(self):
        """Once there is something to be read."""
        chunk = b""
        with contextlib.suppress(OSError):  # which is how a terminal tells that nobody is behind it
            chunk = os.read(self.output, 65536)
        if not chunk:
            raise Failed("ended")
        self.said += chunk

    def await_text(self, text, deadline):
        while text not in self.said:
            if select.select([self.output], [], [], left_of(deadline))[0]:
                self.read()


def raw_terminal():
    """(our side, the other's), which says nothing of itself."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    return ours, theirs


def allocated(paths):
    """Bytes that the files take on their disk."""
    return sum(path.stat().st_blocks * 512 for path in paths)


class Saver:
    """One VMM: how its guest is begun, saved, and restored in each of its ways. `work` is its own directory."""
    name = ""
    ways = ("",)  # what stands behind the name, for each
    resumed = b""  # what it says on the channel when the guest goes on
    terminal = False  # it reads the guest's console from nothing else

    def __init__(self, program, guest, work):
        self.program = str(program)
        self.guest = guest
        self.work = work
        self.socket = work / "vmm.sock"
        self.log = work / "log"

    def command(self):
        """Begins the guest."""
        raise NotImplementedError

    def files(self):
        """What a snapshot is in."""
        raise NotImplementedError

    def save(self, running, deadline):
        """Into files(), from a guest that goes on behind it: the seconds that it stood still for."""
        raise NotImplementedError

    def restore_command(self, way, channel):
        """`channel` is a descriptor of the new process, which may be told of the end of the restore there."""
        raise NotImplementedError

    def begin_restore(self, way, running, deadline):
        """Asks for it, where the command does not: the channel on which the answer comes, else None. What was
        prepared ahead is measured from here: `running.started_ns` becomes that moment."""

    def inspect(self, way, running, deadline):
        """Further figures of one that was restored; it may end with that."""
        return {}


class Vireo(Saver):
    name = "vireo"
    ways = ("", "copy", "standby")

    def __init__(self, program, guest, work):
        super().__init__(program, guest, work)
        self.timeline = work / "timeline.json"

    def command(self):
        initramfs = ["--initramfs", self.guest.initramfs] if self.guest.initramfs else []
        return [self.program, "run", "--kernel", self.guest.kernel, *initramfs, "--cpus", str(self.guest.cpus),
                "--memory", f"{self.guest.memory}M", "--cmdline", self.guest.words, "--control", str(self.socket)]

    def files(self):
        return [self.work / "vm.vsnap"]

    def save(self, running, deadline):
        done = subprocess.run([self.program, "ctl", str(self.socket), "snapshot", str(self.files()[0]), "--json"],
                              capture_output=True, check=False, timeout=left_of(deadline))
        if done.returncode != 0:
            raise Failed(done.stderr.decode(errors="replace").strip())
        return json.loads(done.stdout)["pause_us"] / 1e6

    def restore_command(self, way, channel):
        return [self.program, "restore", str(self.files()[0]), *(["--standby"] if way == "standby" else
                ["--memory", way or "map"]), "--control", str(self.socket), "--timeline", str(self.timeline),
                "--notify", f"fd:{channel}"]

    def begin_restore(self, way, running, deadline):
        if way != "standby":
            return
        file = self.files()[0]
        with await_socket(self.socket, running.process, deadline) as client, open(file, "rb") as snapshot:
            if ask(client, deadline, "GET", "/vireo/status")["state"] != "standby":
                raise Failed("it does not stand by")
            time.sleep(STANDBY_SECONDS)
            running.started_ns = time.monotonic_ns()
            socket.send_fds(client, [request_of("POST", "/vireo/load", {"path": str(file)})], [snapshot.fileno()])
            read_answer(client, deadline)

    def inspect(self, way, running, deadline):
        """`entry`: seconds from the process's start to the guest's first instruction, as the timeline has it; `loaded`
        the same from the request to one that stood by. The timeline counts from main(), and how long ago that was the
        program tells when it is asked."""
        asked = []  # how long it took to ask, and when main() was by the answer
        for _ in range(UPTIMES):
            with await_socket(self.socket, running.process, deadline) as client:
                before = time.monotonic_ns()
                uptime = ask(client, deadline, "GET", "/vireo/status")["uptime_us"] * 1000
                after = time.monotonic_ns()
                asked.append((after - before, (before + after) // 2 - uptime))
        main_ns = min(asked)[1]
        with await_socket(self.socket, running.process, deadline) as client:
            ask(client, deadline, "POST", "/vireo/kill")
        running.process.wait(left_of(deadline))
        steps = json.loads(self.timeline.read_text(encoding="ascii"))["steps"]
        entered = next(step["at_us"] for step in steps if step["name"] == "first_entry")
        return {"loaded" if way == "standby" else "entry": (main_ns - running.started_ns) / 1e9 + entered / 1e6}


class Firecracker(Saver):
    name = "firecracker"
    resumed = b"HTTP/1.1 204"

    def __init__(self, program, guest, work, filters=None):
        super().__init__(program, guest, work)
        self.options = ["--level", "Error", "--api-sock", str(self.socket),
                        *(["--seccomp-filter", str(filters)] if filters else ["--no-seccomp"])]

    def command(self):
        config = self.work / "config.json"
        boot = {"kernel_image_path": str(self.guest.kernel), "boot_args": self.guest.words}
        if self.guest.initramfs:
            boot["initrd_path"] = str(self.guest.initramfs)
        config.write_text(json.dumps({
            "boot-source": boot, "drives": [],
            "machine-config": {"vcpu_count": self.guest.cpus, "mem_size_mib": self.guest.memory}}), encoding="utf-8")
        return [self.program, *self.options, "--config-file", str(config)]

    def files(self):
        return [self.work / "vm.state", self.work / "vm.mem"]

    def save(self, running, deadline):
        state, memory = map(str, self.files())
        with await_socket(self.socket, running.process, deadline) as client:
            before = time.monotonic()
            ask(client, deadline, "PATCH", "/vm", {"state": "Paused"})
            ask(client, deadline, "PUT", "/snapshot/create", {"snapshot_path": state, "mem_file_path": memory})
            ask(client, deadline, "PATCH", "/vm", {"state": "Resumed"})
            return time.monotonic() - before

    def restore_command(self, way, channel):
        return [self.program, *self.options]

    def begin_restore(self, way, running, deadline):
        state, memory = map(str, self.files())
        client = await_socket(self.socket, running.process, deadline)
        client.sendall(request_of("PUT", "/snapshot/load", {
            "snapshot_path": state, "mem_backend": {"backend_type": "File", "backend_path": memory},
            "resume_vm": True}))
        return client


class CloudHypervisor(Saver):
    name = "cloud-hypervisor"
    ways = ("ondemand", "copy")
    resumed = b'"resumed"'
    terminal = True

    def __init__(self, program, guest, work):
        super().__init__(program, guest, work)
        self.snapshot = work / "snapshot"

    def command(self):
        words = self.guest.words.replace("end=reboot", "end=poweroff").replace(" pci=off", "")
        initramfs = ["--initramfs", self.guest.initramfs] if self.guest.initramfs else []
        return [self.program, "--api-socket", str(self.socket), "--kernel", str(self.guest.kernel), *initramfs,
                "--cmdline", words, "--cpus", f"boot={self.guest.cpus}", "--memory", f"size={self.guest.memory}M",
                "--serial", "tty", "--console", "off"]

    def files(self):
        return [self.snapshot / name for name in ("config.json", "state.json", "memory-ranges")]

    def save(self, running, deadline):
        for path in self.files():
            path.unlink(missing_ok=True)
        self.snapshot.mkdir(exist_ok=True)
        with await_socket(self.socket, running.process, deadline) as client:
            before = time.monotonic()
            ask(client, deadline, "PUT", "/api/v1/vm.pause")
            ask(client, deadline, "PUT", "/api/v1/vm.snapshot", {"destination_url": f"file://{self.snapshot}"})
            ask(client, deadline, "PUT", "/api/v1/vm.resume")
            return time.monotonic() - before

    def restore_command(self, way, channel):
        return [self.program, "--event-monitor", f"fd={channel}", "--restore",
                f"source_url=file://{self.snapshot},resume=true,memory_restore_mode={way}"]
