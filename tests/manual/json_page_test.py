#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo-json(7) against what vireo writes: every field of every object is on the page with its type,
and each that is on the page is written."""
import collections
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from manual_pages import items, part, plain, source  # noqa: E402
from vireo_process import PROBE, reap, run, start  # noqa: E402

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array",
         type(None): "null"}
# What a host's KVM counts is not ours to say, nor whether it counts anything for an idle VM.
HOSTS_OWN = {"kvm.NAME", "vcpus[].kvm.NAME"}
EVERY_END = {"power_off", "reboot", "panic", "crash", "stopped", "not_ready", "host_memory", "failed"}


class Field:
    """A field as the page tells it."""

    def __init__(self, path, kind):
        words = kind.removeprefix("Pq ").split(", ")
        self.path = path
        self.parent = re.sub(r"\.?[^.]+$", "", path)
        self.types = set(words[0].split(" or "))
        self.optional = words[1:] == ["optional"]
        if "number" in self.types:
            self.types.add("integer")  # one without a point
        parts = [r"[^.]+" if name.isupper() else re.escape(name) for name in path.split(".")]
        self.pattern = re.compile(r"\.".join(parts))


def fields_of(heading):
    return [Field(name, kind) for name, kind in items(part("vireo-json.7", heading), "Va")]


def meaning_of(heading, name):
    found = re.search(rf"^\.It Va {re.escape(name)} .*\n((?:(?!\.It|\.El).*\n)*)",
                      plain(part("vireo-json.7", heading)), re.MULTILINE)
    return re.findall(r"[\w:]+", found[1])


def flat(value, path=""):
    """(path, type) of all that is in a JSON value, itself included."""
    yield path, TYPES[type(value)]
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from flat(inner, path + "[]")


class JsonPage(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = self.directory / "vm.sock"

    def same(self, fields, samples):
        """Every sample is as `fields` say, and each of these is in one of them."""
        self.assertTrue(samples)
        counts = collections.Counter()
        for sample in samples:
            for path, kind in flat(sample):
                told = [field for field in fields if field.pattern.fullmatch(path)]
                if path and not path.endswith("[]"):
                    self.assertEqual(len(told), 1, f"{path} is not on the page")
                    self.assertIn(kind, told[0].types, path)
                counts[told[0].path if told else path] += 1
        for field in fields:
            if field.path not in HOSTS_OWN:
                self.assertGreater(counts[field.path], 0, f"nothing has {field.path}")
            if not field.optional:
                self.assertEqual(counts[field.path], counts[field.parent], f"{field.path} is optional")

    def start(self, *options, words="probe=mark 5 probe=echo end=poweroff", name="web-1", **others):
        named = ["--name", name] if name else []
        process = start("run", "--kernel", PROBE, "--cmdline", words, "--control", self.path, *named,
                        *options, **others)
        self.addCleanup(reap, process)
        self.assertEqual(process.stdout.readline().strip(), b"probe: echo=ready")
        return process

    def ask_with(self, file, path, body):
        """A POST with a file beside it."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self.path))
            head = f"POST {path} HTTP/1.1\r\nHost: vm\r\nContent-Length: {len(body)}\r\n\r\n"
            socket.send_fds(connection, [(head + body).encode()], [file.fileno()])
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, json.loads(response.read())

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("vm", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.sock.settimeout(20)
        connection.sock.connect(str(self.path))
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def disk(self):
        """The option for one."""
        image = self.directory / "disk.img"
        image.write_bytes(bytes(1 << 20))
        return "--disk", f"id=data,path={image}"

    def shown(self, verb):
        return json.loads(run("ctl", self.path, verb, "--json").output)


class ControlSocket(JsonPage):
    def test_what_is_shown(self):
        config = self.directory / "vm.toml"
        config.write_text('namespace = "shop"\nlabels = { revision = "3" }\n', encoding="ascii")
        self.start(config, *self.disk())
        status = self.shown("status")
        self.same(fields_of("status"), [status])
        self.assertIn(status["state"], meaning_of("status", "state"))
        self.same(fields_of("stats"), [self.shown("stats")])
        self.same(fields_of("metrics"), [self.shown("metrics")])

        resolved = self.shown("config")
        keys = {re.sub(r"\.NAME$", "", plain(key)) for key
                in re.findall(r"^\.It Ic (\S+) ", source("vireo.toml.5"), re.MULTILINE)}
        for path, kind in flat(resolved.pop("config")):
            path = path.replace("[].", ".")  # one of several tables
            table = kind == "object" and any(key.startswith(path + ".") for key in keys)
            inner = path.startswith("labels.") or path.endswith("[]")
            self.assertTrue(path in keys or table or inner or not path, path)
        self.same([field for field in fields_of("config") if field.path != "config"], [resolved])

    def test_states_events_and_the_end(self):
        process = self.start("--ready", "serial:now")
        listener = start("ctl", self.path, "events", "--json")
        events = [json.loads(listener.stdout.readline())]
        states = [self.ask("POST", f"/vireo/{verb}") for verb in ("pause", "resume")]
        process.stdin.write(b"now")
        process.stdin.flush()
        answer = self.ask("POST", "/vireo/stop", json.dumps({"timeout": "100ms"}))
        self.assertEqual([status for status, _ in states + [answer]], [200, 200, 200])
        self.same(fields_of("pause, resume, stop, kill, ctrl-alt-del, nmi")[:2],
                  [body for _, body in states + [answer]])
        told = fields_of("pause, resume, stop, kill, ctrl-alt-del, nmi")[2:]
        self.assertEqual([(field.path, field.optional) for field in told], [("timeout", True)])
        output, _ = listener.communicate(timeout=30)
        events += [json.loads(row) for row in output.splitlines()]
        self.same(fields_of("events"), events)
        words = set(meaning_of("events", "event")) | set(meaning_of("status", "state"))
        self.assertLessEqual({event["event"] for event in events}, words)
        self.assertLessEqual(EVERY_END, words)

    def test_drive(self):
        self.start(*self.disk())
        limit = {"ops": {"size": 100, "refill": "1s"}, "bandwidth": {"size": "1M", "refill": "1s"}}
        asked = {"id": "data", "size": "2M", "rate_limit": limit}
        status, answer = self.ask("POST", "/vireo/drive", json.dumps(asked))
        self.assertEqual(status, 200, answer)
        self.same(fields_of("drive, the answer"), [answer])
        self.assertEqual({field.path for field in fields_of("drive")},
                         set(asked) | {"rate_limit.ops", "rate_limit.bandwidth", "path"})

    def test_snapshot(self):
        self.start()
        asked = {"then": "resume", "disks": "none", "diff": False, "rounds": 3, "left": "1M", "over": "refuse"}
        with tempfile.TemporaryFile() as file:
            status, answer = self.ask_with(file, "/vireo/snapshot", json.dumps(asked))
        self.assertEqual(status, 200, answer)
        self.same(fields_of("snapshot, the answer"), [answer])
        self.assertEqual({field.path for field in fields_of("snapshot")},
                         set(asked) | {"parent", "disk_files", "disk_files[].id", "disk_files[].path"})

    def test_load(self):
        saved = self.start()
        path = self.directory / "web.vsnap"
        self.assertEqual(run("ctl", self.path, "snapshot", path, "--then", "stop").status, 0)
        saved.communicate(timeout=60)
        process = start("restore", path, "--standby", "--control", self.path)
        self.addCleanup(reap, process)
        while run("ctl", self.path, "status").status != 0:
            self.assertIsNone(process.poll())
        self.assertIn("standby", meaning_of("status", "state"))
        asked = {"path": str(path)}
        with open(path, "rb") as file:
            status, answer = self.ask_with(file, "/vireo/load", json.dumps(asked))
        self.assertEqual(status, 200, answer)
        self.same(fields_of("load, the answer"), [answer])
        self.assertEqual({field.path for field in fields_of("load")}, set(asked))

    def test_refusals(self):
        self.start()
        asked = [self.ask("GET", "/vireo/nothing"), self.ask("GET", "/vireo/pause"),
                 self.ask("POST", "/vireo/stop", "[]"), self.ask("POST", "/vireo/resume")]
        self.assertEqual([status for status, _ in asked], [404, 405, 400, 409])
        self.same(fields_of("Refusals"), [body for _, body in asked])


class Files(JsonPage):
    def ended(self, *options, stdin=b"q"):
        process = self.start(*options)
        process.communicate(stdin, timeout=60)
        self.assertEqual(process.returncode, 0)

    def test_timeline(self):
        path = self.directory / "timeline"
        self.ended("--timeline", path)
        timeline = json.loads(path.read_bytes())
        self.same(fields_of("TIMELINE"), [timeline])
        reached = {re.sub(r"^guest_mark:\d+$", "guest_mark:N", step["name"]) for step in timeline["steps"]}
        told = set(meaning_of("TIMELINE", "steps[].name"))
        self.assertLessEqual(reached, told)
        # No other word of that sentence is one of the names.
        self.assertEqual({word for word in told if "_" in word} | {"ready", "end"}, reached)

    def test_profile(self):
        path = self.directory / "profile"
        self.ended("--profile", path, stdin=b"initcall acpi_init+0x0/0x10 returned 0 after 5 usecs\nq")
        profile = json.loads(path.read_bytes())
        of_stats = [field for field in fields_of("stats") if field.path.startswith(("vcpus", "kvm"))]
        own = [field for field in fields_of("PROFILE") if field.path not in ("vcpus", "kvm")]
        self.assertEqual(len(own), len(fields_of("PROFILE")) - 2)
        self.same(own + of_stats, [profile])

    def test_metrics_file(self):
        path = self.directory / "metrics"
        process = self.start("--metrics", path, *self.disk())
        process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        samples = [json.loads(path.read_bytes())]
        process.communicate(b"q", timeout=60)
        samples.append(json.loads(path.read_bytes()))
        self.same(fields_of("metrics"), samples)

    def test_log(self):
        told = fields_of("LOG")
        lines = []
        for name in ("web-1", None):
            process = self.start("--log-format", "json", name=name,
                                 env=dict(os.environ, NOTIFY_SOCKET=str(self.directory / "none")))
            _, errors = process.communicate(b"q", timeout=60)
            lines += [json.loads(row) for row in errors.splitlines()]
        self.same(told, lines)
        self.assertEqual({"vm" in line for line in lines}, {True, False})
        for line in lines:
            self.assertIn(line["level"], meaning_of("LOG", "level"))

    def test_snapshot(self):
        self.start()
        path = self.directory / "vm.vsnap"
        self.assertEqual(run("ctl", self.path, "snapshot", path).status, 0)
        self.same(fields_of("SNAPSHOTS"), [json.loads(run("snapshot", "info", path, "--json").output)])

    def test_disk(self):
        base = self.directory / "base.img"
        base.write_bytes(bytes(1 << 20))
        overlay = self.directory / "over.img"
        process = self.start("--disk", f"id=d,path={base},overlay={overlay}")
        process.communicate(b"q", timeout=60)
        self.same(fields_of("DISK"), [json.loads(run("disk", "info", overlay, "--json").output)])

    def test_doctor(self):
        report = json.loads(run("doctor", "--json").output)
        self.same(fields_of("DOCTOR"), [report])
        sections = {finding["section"] for finding in report["findings"]}
        self.assertEqual(sections, set(meaning_of("DOCTOR", "findings[].section")) - {"or"})


if __name__ == "__main__":
    unittest.main()
