#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The control socket and `vireo ctl`: every verb, and clients that behave badly."""
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import socket
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import PROBE, is_sanitized, reap, run, start  # noqa: E402

RANDOM_SECONDS = 600 if os.environ.get("VIREO_LONG") else 5
VERBS_THAT_SHOW = ("status", "config", "stats", "metrics")


class Connection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path):
        super().__init__("vm", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self.path))


class ControlTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = self.directory / "vm.sock"

    def start(self, *options, words="probe=echo end=poweroff"):
        """A guest that echoes its console; q ends it."""
        process = start("run", "--kernel", PROBE, "--cmdline", words, "--control", self.path,
                        "--name", "web-1", *options)
        self.addCleanup(reap, process)
        self.assertEqual(process.stdout.readline().strip(), b"probe: echo=ready")
        return process

    def ctl(self, *words):
        return run("ctl", self.path, *words)

    def ask(self, method, verb, body=None, **headers):
        connection = Connection(self.path)
        connection.request(method, f"/vireo/{verb}", body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response, text

    def raw(self, data=b""):
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.settimeout(30)
        client.connect(str(self.path))
        if data:
            client.sendall(data)
        return client


class Verbs(ControlTest):
    def test_what_is_shown_is_true(self):
        process = self.start("--memory", "96M", "--cpus", "1")
        status = json.loads(self.ctl("status", "--json").output)
        self.assertEqual((status["version"], status["name"], status["state"], status["ready"],
                          status["pid"], status["memory_bytes"]),
                         (1, "web-1", "running", True, process.pid, 96 << 20))
        config = json.loads(self.ctl("config", "--json").output)["config"]
        self.assertEqual(config["machine"]["memory"], "96M")
        stats = json.loads(self.ctl("stats", "--json").output)
        exits = stats["vcpus"][0]["exits"]
        self.assertTrue(any(e.get("device") == "serial" and e["count"] > 10 for e in exits), exits)
        self.assertGreater(stats["vcpus"][0]["in_kvm_run_us"], 0)
        metrics = json.loads(self.ctl("metrics", "--json").output)["metrics"]
        self.assertEqual(metrics["vireo_memory_bytes"], 96 << 20)
        self.assertEqual(metrics["vireo_console_bytes"], len("probe: echo=ready\r\n"))
        for verb in VERBS_THAT_SHOW:
            shown = self.ctl(verb)
            self.assertEqual((shown.status, shown.errors), (0, ""), shown)
            self.assertNotIn("{\"version\"", shown.output)
        self.assertIn("state: running\n", self.ctl("status").output)
        self.assertRegex(self.ctl("stats").output, r"io +0x3f8 +write +serial")

    def test_metrics_as_openmetrics_text(self):
        self.start()
        response, text = self.ask("GET", "metrics", Accept="application/openmetrics-text")
        self.assertEqual(response.getheader("Content-Type").split(";")[0], "application/openmetrics-text")
        self.assertTrue(text.endswith("# EOF\n"), text)
        self.assertRegex(text, r'\nvireo_exits_total\{vm="web-1",reason="io"\} \d+\n')
        for line in text.splitlines():
            self.assertRegex(line, r'^(# (TYPE|HELP) vireo_\w+ .+|# EOF|vireo_\w+\{.*\} [0-9.e+-]+)$')

    def test_pause_and_resume(self):
        process = self.start()
        self.assertEqual(self.ctl("pause").status, 0)
        self.assertEqual(json.loads(self.ctl("status", "--json").output)["state"], "paused")
        process.stdin.write(b"hello")
        process.stdin.flush()
        before = self.ctl("stats", "--json").output
        time.sleep(0.2)
        # Nothing runs: not one exit more.
        self.assertEqual(json.loads(self.ctl("stats", "--json").output)["vcpus"][0]["exits"],
                         json.loads(before)["vcpus"][0]["exits"])
        self.assertEqual(self.ctl("pause").status, 0)
        self.assertEqual(self.ctl("resume").status, 0)
        self.assertEqual(process.stdout.read(5), b"hello")
        again = self.ctl("resume")
        self.assertEqual((again.status, again.output), (1, ""))
        self.assertRegex(again.errors, "^vireo: resume: the VM is not paused: it is running\n$")
        output, errors = process.communicate(b"q", timeout=20)
        self.assertEqual(process.returncode, 0, (output, errors))

    def test_stop_waits_for_the_guest_and_then_does_without(self):
        process = self.start()
        began = time.monotonic()
        self.assertEqual(self.ctl("stop", "--timeout", "400ms").status, 0)
        self.assertGreaterEqual(time.monotonic() - began, 0.4)
        _, errors = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 0)
        self.assertIn(b"did not shut down within 400ms", errors)
        self.assertFalse(self.path.exists())

    def test_stop_of_a_paused_vm_lets_it_go_on(self):
        process = self.start()
        self.ctl("pause")
        self.assertEqual(self.ctl("stop", "--timeout", "100ms").status, 0)
        process.communicate(timeout=20)
        self.assertEqual(process.returncode, 0)

    def test_kill(self):
        process = self.start()
        self.assertEqual(self.ctl("kill").status, 0)
        process.communicate(timeout=20)
        self.assertEqual(process.returncode, 0)

    def test_nmi(self):
        self.start("--cpus", "2")
        # The probe has no handler for it: what it comes to is for tests with Linux.
        self.assertEqual(self.ctl("nmi").status, 0)

    def test_ctrl_alt_del_wants_a_keyboard(self):
        self.start()
        self.assertEqual(self.ctl("ctrl-alt-del").errors,
                         "vireo: ctrl-alt-del: the guest has not enabled its keyboard\n")

    def test_events_from_the_first_to_the_last(self):
        process = self.start("--ready", "serial:now")
        listener = start("ctl", self.path, "events", "--json")
        first = json.loads(listener.stdout.readline())
        self.assertEqual((first["version"], first["vm"], first["event"]), (1, "web-1", "running"))
        process.stdin.write(b"it is now")
        process.stdin.flush()
        self.assertEqual(json.loads(listener.stdout.readline())["event"], "ready")
        self.ctl("pause")
        self.ctl("resume")
        process.communicate(b"q", timeout=20)
        output, errors = listener.communicate(timeout=20)
        names = [json.loads(line)["event"] for line in output.splitlines()]
        self.assertEqual(names, ["pausing", "paused", "running", "power_off"], errors)
        self.assertEqual(listener.returncode, 0)

    def test_wrong_command_lines_and_nobody_there(self):
        for words, status in ((("x.sock",), 64), (("x.sock", "fly"), 64), (("x.sock", "pause", "--timeout", "1s"), 64),
                              (("x.sock", "stop", "--timeout", "1"), 64), ((), 64),
                              ((self.directory / "none", "status"), 69)):
            ended = run("ctl", *words)
            self.assertEqual((ended.status, ended.output), (status, ""), ended)
            self.assertEqual(len(ended.errors.splitlines()), 1, ended)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(self.path))
        self.assertEqual(self.ctl("status").status, 69)
        self.assertIn("Verbs:", run("ctl", "--help").output)


class Socket(ControlTest):
    def test_a_listener_that_closes_before_it_takes_the_request(self):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen()
            asking = [start("ctl", self.path, verb) for verb in ("status", "pause", "events")]
            time.sleep(3)
        for process in asking:
            _, errors = process.communicate(timeout=20)
            self.assertEqual(process.returncode, 69, errors)
            self.assertIn(b"vm.sock: the VM ended before it answered", errors)

    def test_permissions_stale_and_live_and_inherited(self):
        self.path.touch()
        ended = run("run", "--kernel", PROBE, "--control", self.path)
        self.assertEqual((ended.status, ended.errors),
                         (78, f"vireo: control.path: {self.path} exists and is not a socket\n"))
        self.path.unlink()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(self.path))
        process = self.start()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        ended = run("run", "--kernel", PROBE, "--control", self.path)
        self.assertEqual((ended.status, ended.errors),
                         (78, f"vireo: control.path: {self.path} is in use by another process\n"))
        process.kill()
        process.wait()
        self.assertTrue(self.path.exists())
        self.start().communicate(b"q", timeout=20)  # clears up
        self.assertFalse(self.path.exists())

        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        process = start("run", "--kernel", PROBE, "--cmdline", "probe=echo end=poweroff", "--control",
                        f"fd:{listener.fileno()}", pass_fds=[listener.fileno()])
        self.addCleanup(reap, process)
        process.stdout.readline()
        self.assertEqual(json.loads(self.ctl("status", "--json").output)["pid"], process.pid)
        process.communicate(b"q", timeout=20)
        self.assertTrue(self.path.exists())  # whoever made it removes it
        listener.close()

    def test_answers_of_http(self):
        self.start()
        for method, verb, body, status in (
                ("GET", "nothing", None, 404), ("GET", "", None, 404), ("PUT", "pause", None, 405),
                ("POST", "status", None, 405), ("POST", "pause", "{}", 200), ("POST", "resume", "", 200),
                ("POST", "pause", "{\"now\": 1}", 400), ("POST", "pause", "[]", 400), ("POST", "pause", "{", 400),
                ("POST", "stop", "{\"timeout\": 10}", 400), ("POST", "stop", "{\"timeout\": \"10\"}", 400),
                ("POST", "stop", "{\"when\": \"10s\"}", 400)):
            with self.subTest(method=method, verb=verb, body=body):
                response, text = self.ask(method, verb, body)
                self.assertEqual(response.status, status, text)
                if status != 200:
                    self.assertEqual(list(json.loads(text)), ["version", "error"])
                if status == 405:
                    self.assertIn(response.getheader("Allow"), ("GET", "POST"))

    def test_pipelined_requests_are_answered_in_order(self):
        self.start()
        verbs = ["status", "pause", "status", "resume", "status"] * 20
        text = "".join(f"{'GET' if verb == 'status' else 'POST'} /vireo/{verb} HTTP/1.1\r\nHost: a\r\n\r\n"
                       for verb in verbs)
        client = self.raw(text.encode())
        client.shutdown(socket.SHUT_WR)
        received = b""
        while data := client.recv(65536):
            received += data
        states = re.findall(rb'"state":"(\w+)"', received)
        self.assertEqual(states, [b"running", b"paused", b"paused", b"running", b"running"] * 20)

    def test_a_request_byte_by_byte_and_http_1_0(self):
        self.start()
        client = self.raw()
        for byte in b"GET /vireo/status HTTP/1.0\r\nX: y\r\n\r\n":
            client.sendall(bytes([byte]))
        received = b""
        while data := client.recv(65536):
            received += data
        self.assertTrue(received.startswith(b"HTTP/1.1 200 OK\r\n"), received)
        self.assertIn(b"Connection: close\r\n", received)

    def test_a_chunked_body_byte_by_byte(self):
        self.start()
        client = self.raw()
        for byte in (b"POST /vireo/pause HTTP/1.1\r\nHost: vm\r\nTransfer-Encoding: chunked\r\n\r\n"
                     b"0\r\nX-Trailer: 1\r\n\r\n"):
            client.sendall(bytes([byte]))
            time.sleep(0.001)
        self.assertIn(b"HTTP/1.1 200 ", client.recv(4096))
        self.assertEqual(json.loads(self.ctl("status", "--json").output)["state"], "paused")

    def test_what_is_no_request_ends_the_connection(self):
        self.start()
        for data, status in ((b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"), (b"GET\r\n\r\n", b"400"),
                             (b"GET /vireo/status HTTP/9.9\r\n\r\n", b"505"),
                             (b"GET / HTTP/1.1\r\nX: " + b"a" * 20000, b"431"),
                             (b"GET /" + b"a" * 20000, b"431"),
                             (b"POST /vireo/stop HTTP/1.1\r\nContent-Length: 70000\r\n\r\n", b"413"),
                             (b"POST /vireo/stop HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400")):
            with self.subTest(data[:40]):
                client = self.raw(data)
                received = b""
                with contextlib.suppress(ConnectionResetError):
                    while piece := client.recv(65536):
                        received += piece
                self.assertTrue(received.startswith(b"HTTP/1.1 " + status), received[:200])
        self.assertEqual(self.ctl("status").status, 0)

    def test_slow_and_silent_clients_are_sent_away(self):
        self.start()
        slow = self.raw(b"GET /vireo/status HT")
        began = time.monotonic()
        self.assertEqual(slow.recv(100), b"")
        self.assertGreater(time.monotonic() - began, 5)

    def test_too_many_clients_and_one_who_listens_to_nothing(self):
        process = self.start()
        listener = self.raw(b"GET /vireo/events HTTP/1.1\r\nHost: a\r\n\r\n")
        others = [self.raw() for _ in range(15)]
        extra = self.raw()
        self.assertTrue(extra.recv(1000).startswith(b"HTTP/1.1 503 "))
        for client in others:
            client.close()
        before = resident(process.pid)
        for _ in range(1500):
            self.ask("POST", "pause")
            self.ask("POST", "resume")
        self.assertLess(resident(process.pid) - before, (100 if is_sanitized() else 2) << 20)
        received = b""
        listener.settimeout(2)
        with contextlib.suppress(TimeoutError):
            while data := listener.recv(65536):
                received += data
        self.ask("POST", "pause")
        with contextlib.suppress(TimeoutError):
            received += listener.recv(65536)
        self.assertRegex(received, rb'"event":"lost".*events were not taken in time')

    def test_random_requests_leave_a_working_vm(self):
        process = self.start()
        seed = random.randrange(1 << 32)
        numbers = random.Random(seed)
        verbs = ["status", "config", "stats", "metrics", "pause", "resume", "nothing", "ctrl-alt-del", "%00", "../x"]
        before = resident(process.pid)
        room = room_for_descriptors(process.pid)
        until = time.monotonic() + RANDOM_SECONDS
        answers = []

        def talk(connection):
            for _ in range(numbers.randrange(1, 6)):
                connection.request(numbers.choice(["GET", "POST", "PUT", "BREW"]),
                                   "/vireo/" + numbers.choice(verbs),
                                   numbers.choice([None, "{}", "x" * 100, "{\"timeout\": \"1s\"}"]))
                if numbers.random() < 0.9:
                    answers.append(connection.getresponse().read())

        def client():
            while time.monotonic() < until:
                connection = Connection(self.path)
                with contextlib.suppress(http.client.HTTPException, OSError):
                    talk(connection)
                connection.close()
        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertGreater(len(answers), 100 * RANDOM_SECONDS)
        self.ask("POST", "resume")
        self.assertEqual(json.loads(self.ask("GET", "status")[1])["state"], "running", f"seed {seed}")
        process.stdin.write(b"hello")
        process.stdin.flush()
        self.assertEqual(process.stdout.read(5), b"hello", f"seed {seed}")
        self.assertEqual(room_for_descriptors(process.pid), room)
        # A sanitizer keeps what was freed.
        self.assertLess(resident(process.pid) - before, (400 if is_sanitized() else 2) << 20)


def room_for_descriptors(pid):
    """What they are is not for an ordinary user to see."""
    return re.search(r"FDSize:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii"))[1]


def resident(pid):
    fields = pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    unittest.main()
