#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo-bench restore: how it asks VMMs, what it makes of what they say, and its runs."""
import argparse
import dataclasses
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools/bench"), str(ROOT / "tests/support")]
import measure  # noqa: E402
import restore  # noqa: E402
import savers  # noqa: E402
import together  # noqa: E402
from vireo_process import PROBE, VIREO  # noqa: E402

KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
FLOOR = pathlib.Path(VIREO).parent / "tools/bench/vireo-floor"
GUEST = savers.Guest("kernel", "words pci=off end=reboot", 64, b"hold=ready", b"a", b"hold=here")

# A process with Firecracker's command line and API, and a guest's console. It runs where it has a configuration or
# has loaded a snapshot, and answers its console only then.
FIRECRACKER = r'''
import json, os, socket, sys, threading
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
running = threading.Event()
def console():
    for letter in iter(lambda: os.read(0, 1), b""):
        running.wait()
        os.write(1, b"a guest: hold=here\r\n")
threading.Thread(target=console, daemon=True).start()
if "--config-file" in options:
    json.load(open(options["--config-file"]))
    os.write(1, b"hold=ready\r\n")
    running.set()
listener = socket.socket(socket.AF_UNIX)
listener.bind(options["--api-sock"])
listener.listen()
asked = open(options["--api-sock"] + ".asked", "a")
while True:
    client, _ = listener.accept()
    while data := client.recv(65536):
        head, _, body = data.partition(b"\r\n\r\n")
        target, body = head.split(b" ")[1].decode(), json.loads(body)
        print(target, *sorted(body.values(), key=str), file=asked, flush=True)
        status = "204 No Content"
        if target == "/snapshot/create":
            if running.is_set():
                status = "400 Bad Request"
            for path in body.values():
                open(path, "w").write("x" * 5000)
        elif target == "/snapshot/load":
            open(body["snapshot_path"]), open(body["mem_backend"]["backend_path"])
            running.set()
        elif target == "/vm":
            (running.clear if body["state"] == "Paused" else running.set)()
        client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
'''
# And with Cloud Hypervisor's: it tells of the end of a restore by an event, and has its console on a terminal.
EVENTS = r'''
import os, sys, time
channel = int(sys.argv[sys.argv.index("--event-monitor") + 1].partition("=")[2])
if not os.isatty(0) or not os.isatty(1):
    sys.exit("the console is no terminal")
for event in ("restoring", "restored", "resuming", "resumed"):
    os.write(channel, b'{"source": "vm", "event": "%s"}\n\n' % event.encode())
os.read(0, 1)
os.write(1, b"hold=")
time.sleep(0.3)
os.write(1, b"here\r\n")
time.sleep(1000)
'''


class Asking(unittest.TestCase):
    def asked(self, *pieces, deadline=30.0):
        """What ask() makes of an answer that comes in these pieces."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            def answer():
                self.request = theirs.recv(4096)
                for piece in pieces:
                    theirs.sendall(piece)
                    time.sleep(0.01)
                theirs.shutdown(socket.SHUT_WR)
            thread = threading.Thread(target=answer)
            thread.start()
            try:
                return savers.ask(ours, time.monotonic() + deadline, "PUT", "/x", {"a": 1})
            finally:
                thread.join()

    def test_an_answer_in_pieces(self):
        found = self.asked(b"HTTP/1.1 200 OK\r\nContent-", b"length: 8\r\n\r\n", b'{"b"', b": 2}")
        self.assertEqual(found, {"b": 2})
        self.assertTrue(self.request.startswith(b"PUT /x HTTP/1.1\r\n"))
        self.assertTrue(self.request.endswith(b'Content-Length: 8\r\n\r\n{"a": 1}'))

    def test_an_answer_without_a_body(self):
        self.assertIsNone(self.asked(b"HTTP/1.1 204 No Content\r\n\r\n"))

    def test_what_is_no_good_answer(self):
        for answer, why in ((b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno", "refused: b'no'"),
                            (b"", "no answer"), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "no answer")):
            with self.subTest(why), self.assertRaisesRegex(savers.Failed, why):
                self.asked(answer)


class Sockets(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name, "s")

    def connect(self, script, seconds=60.0):
        with subprocess.Popen([sys.executable, "-c", script, self.path]) as process:
            try:
                savers.await_socket(self.path, process, time.monotonic() + seconds).close()
            finally:
                process.kill()

    def test_one_that_comes_later_and_listens_later(self):
        self.connect("import socket, sys, time\ntime.sleep(0.2)\ns = socket.socket(socket.AF_UNIX)\n"
                     "s.bind(sys.argv[1])\ntime.sleep(0.2)\ns.listen()\ntime.sleep(1000)")

    def test_one_that_never_comes(self):
        with self.assertRaisesRegex(savers.Failed, "status 3 before"):
            self.connect("import sys; sys.exit(3)")
        with self.assertRaisesRegex(savers.Failed, "in time"):
            self.connect("import time; time.sleep(1000)", 0.3)


class Events(savers.CloudHypervisor):
    """The commands of a Cloud Hypervisor, whose program is a script of ours."""

    def restore_command(self, way, channel):
        return [sys.executable, "-c", self.program, *super().restore_command(way, channel)[1:]]


class FakeFirecracker(savers.Firecracker):
    def command(self):
        return [sys.executable, "-c", FIRECRACKER, *self.in_pairs(super().command())]

    def restore_command(self, way, channel):
        return [sys.executable, "-c", FIRECRACKER, *self.in_pairs(super().restore_command(way, channel))]

    @staticmethod
    def in_pairs(command):
        return [word for word in command[1:] if word != "--no-seccomp"]


class Runs(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.work = pathlib.Path(directory.name)

    def test_a_firecracker_is_saved_and_restored(self):
        saver = FakeFirecracker("firecracker", GUEST, self.work)
        saved = restore.run_save(saver, 60)
        self.assertTrue(saved.ok, saved.why)
        self.assertEqual(saved.extra["file"], 2 * 8192)
        self.assertTrue(0 < saved.extra["pause"] <= saved.extra["saving"])
        for _ in range(2):
            run = restore.run_restore(saver, "", 60)
            self.assertTrue(run.ok, run.why)
            self.assertTrue(0 < run.extra["resumed"] < 60 and 0 < run.extra["answer"] < 60, run.extra)
            self.assertTrue(0 < run.extra["anonymous"] < run.extra["resident"], run.extra)
        state, memory = map(str, saver.files())
        asked = pathlib.Path(f"{saver.socket}.asked").read_text(encoding="ascii").splitlines()
        self.assertEqual(asked[:3], ["/vm Paused", f"/snapshot/create {memory} {state}", "/vm Resumed"])
        self.assertEqual([line.split()[0] for line in asked[3:]], ["/snapshot/load"] * 2)

    def test_a_guest_that_cannot_be_saved(self):
        saver = FakeFirecracker("firecracker", dataclasses.replace(GUEST, ready=b"never"), self.work)
        run = restore.run_save(saver, 1)
        self.assertFalse(run.ok)
        self.assertIn("hold=ready", run.why)  # what it has said instead
        run = restore.run_restore(saver, "", 60)
        self.assertFalse(run.ok)
        self.assertIn("No such file", run.why)

    def events(self, script, timeout=60.0):
        return restore.run_restore(Events(script, GUEST, self.work), "copy", timeout)

    def test_what_is_told_on_a_channel(self):
        before = time.monotonic()
        run = self.events(EVENTS)
        self.assertTrue(run.ok, run.why)
        # The first byte of an answer counts, which is there before the rest of it.
        self.assertGreater(time.monotonic() - before, run.extra["answer"] + 0.3)
        self.assertLess(run.extra["resumed"], run.extra["answer"])

    def test_one_that_says_nothing_useful(self):
        for script, why in ((EVENTS.replace("time.sleep(1000)", "").replace("here", "nobody"), "ended"),
                            (EVENTS.replace('"resumed"', '"never"').replace("time.sleep(1000)", ""), "ended|runs"),
                            ("import sys; sys.exit('it cannot be')", "it cannot be"),
                            (EVENTS.replace("here", "nobody"), "not over in time")):
            with self.subTest(why):
                run = self.events(script, 2 if "time" in why else 60)
                self.assertFalse(run.ok)
                self.assertRegex(run.why, why)

    def test_a_terminal_says_nothing_of_itself(self):
        run = self.events(EVENTS.replace("os.read(0, 1)", "time.sleep(0.3)"))
        self.assertTrue(run.ok, run.why)
        # Not the question.
        self.assertGreater(run.extra["answer"], 0.3)

    def test_words_for_cloud_hypervisor(self):
        command = savers.CloudHypervisor("ch", GUEST, self.work).command()
        self.assertEqual(command[command.index("--cmdline") + 1], "words end=poweroff")


class Together(unittest.TestCase):
    def contender(self, script):
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(b"question")
        self.addCleanup(os.unlink, file.name)
        return measure.Contender("script", [sys.executable, "-c", script], b"answer", input=file.name,
                                 inspect=restore.taken)

    def test_all_of_them_are_inspected_and_ended(self):
        contender = self.contender("import sys, time\nprint('answer', sys.stdin.read(), flush=True)\ntime.sleep(1000)")
        each = together.inspect_together(contender, 3, 60)
        self.assertEqual(len(each), 3)
        for one in each:
            self.assertTrue(0 < one["anonymous"] < one["resident"], one)

    def test_one_that_has_its_input_ends(self):
        contender = self.contender("import sys; print('answer', sys.stdin.read())")
        self.assertTrue(together.run_together(contender, 3, 60).ok)
        contender.marker = b"answer question"
        self.assertTrue(together.run_together(contender, 3, 60).ok)

    def test_one_that_does_not_answer(self):
        with self.assertRaisesRegex(RuntimeError, "it cannot be"):
            together.inspect_together(self.contender("import sys; sys.exit('it cannot be')"), 2, 60)


def row(name, good=3, **figures):
    runs = [measure.Run(True, "", extra={key: column[i] for key, column in figures.items()}, inspected=True)
            for i in range(len(next(iter(figures.values()))))] if figures else [measure.Run(False, "it said no")]
    return {"name": name, "command": [name, "--x"], "runs": 3, "good": good if figures else 0,
            "figures": measure.figures(runs), "values": measure.columns(runs),
            "failures": [] if figures else ["it said no"]}


class Reports(unittest.TestCase):
    ROUNDS = (0.010, 0.020, 0.040, 0.030, 0.090, 0.010)

    def rows(self):
        rows = [row("floor", entry=self.ROUNDS),
                row("vireo", entry=[each + 0.001 for each in self.ROUNDS], resumed=self.ROUNDS),
                row("theirs", resumed=[each * 2.5 for each in self.ROUNDS]), row("broken")]
        for each in rows[:3]:
            each["runs"] = each["good"] = 6
        return rows

    def test_what_is_compared_with_what(self):
        floor, vireo, theirs, broken = rows = self.rows()
        self.assertEqual(restore.beside(floor, rows, "entry"), "")
        self.assertEqual(restore.beside(vireo, rows, "entry"), "+1.00 ms (+1.00 ms – +1.00 ms)")
        self.assertEqual(restore.beside(vireo, rows, "resumed"), "")
        self.assertEqual(restore.beside(theirs, rows, "resumed"), "2.50 (2.50 – 2.50)")
        # Without a floor, and where rounds are not known to be the same.
        self.assertEqual(restore.beside(vireo, [vireo, theirs, broken], "entry"), "")
        theirs["good"] = 5
        self.assertEqual(restore.beside(theirs, rows, "resumed"), "2.50")

    def test_table_and_page(self):
        result = {"benchmark": "restore", "machine": {"cpu": "x"}, "settings": {"runs": 3},
                  "parts": [{"name": "7 MiB, saved", "contenders": [row("a<b", pause=(0.1,), file=(4 << 20,))]},
                            {"name": "7 MiB, restored", "contenders": self.rows()}]}
        out = io.StringIO()
        restore.table(result, out)
        for text in ("7 MiB, saved\n", "  a<b                        pause            100 ms", "4.00 MiB",
                     "  broken                     no good run\n", "  failed: broken: it said no\n",
                     "6/6  +1.00 ms (+1.00 ms – +1.00 ms)\n", "  theirs: theirs --x\n"):
            self.assertIn(text, out.getvalue())
        page = restore.page(result)
        for text in ("<h2>7 MiB, saved</h2>", "<h3>pause</h3><svg", "<h3>resumed</h3><svg", "a&lt;b"):
            self.assertIn(text, page)
        self.assertEqual(page.count("<circle"), 2 + 4 * 6)


class CommandLine(unittest.TestCase):
    def test_what_does_not_go_together_is_refused(self):
        probe = ["restore", "--probe", "p", "--floor", "f"]
        linux = ["restore", "--kernel", "k", "--initramfs", "i"]
        for words, said in ((["restore"], "restore needs --kernel"), (probe[:3], "restore needs --floor"),
                            (linux[:3], "restore needs --initramfs"),
                            ([*probe, "--kernel", "k"], "restore with --probe takes no --kernel"),
                            ([*probe, "--cpus", "2"], "restore with --probe takes no --cpus"),
                            ([*probe, "--memory", "128"], "restore takes no --memory"),
                            ([*probe, "--qemu", "q"], "restore takes no --qemu"),
                            ([*probe, "--sizes", "8"], "--sizes 16"),
                            ([*probe, "--sizes", "128", "16", "--data", "64"], "--sizes 80"),
                            ([*probe, "--saves", "0"], "want at least 1"),
                            ([*probe, "--together", "0"], "wants at least 1"),
                            ([*probe, "--together", "2", "--firecracker", "f"], "restore --together takes no --fire"),
                            ([*linux, "--together", "2"], "--together goes with restore --probe"),
                            ([*linux, "--data", "2"], "--data goes with restore --probe"),
                            ([*linux, "--rootfs", "r"], "--rootfs is for boot and block"),
                            (["boot", "--sizes", "128"], "--sizes is for restore"),
                            (["block", "--saves", "1"], "--saves is for restore")):
            with self.subTest(words):
                done = subprocess.run([sys.executable, ROOT / "tools/vireo-bench", *words, "--vireo", "/none"],
                                      capture_output=True, check=False)
                self.assertEqual(done.returncode, 2)
                self.assertIn(said, done.stderr.decode())


@unittest.skipUnless(KVM, "no usable /dev/kvm")
class Program(unittest.TestCase):
    def bench(self, *words):
        with tempfile.TemporaryDirectory() as directory:
            result = pathlib.Path(directory, "r.json")
            done = subprocess.run(
                [sys.executable, ROOT / "tools/vireo-bench", "restore", "--vireo", VIREO, "--floor", FLOOR, "--probe",
                 PROBE, "--saves", "1", "--runs", "2", "--json", result, *words],
                capture_output=True, check=False, timeout=300)
            self.assertEqual(done.returncode, 0, done)
            return json.loads(result.read_text(encoding="utf-8"))["parts"]

    def figures(self, part):
        return {each["name"]: {key: figure["median"] for key, figure in each["figures"].items()}
                for each in part["contenders"]}

    def test_sizes(self):
        parts = self.bench("--sizes", "64", "4096", "--data", "2")
        self.assertEqual([part["name"] for part in parts], ["64 MiB, saved", "64 MiB, restored", "4096 MiB, saved",
                                                            "4096 MiB, restored"])
        for saved, restored in (parts[:2], parts[2:]):
            # What the guest has in use is in the file, and not all of its memory.
            self.assertTrue(2 << 20 < self.figures(saved)["vireo"]["file"] < 16 << 20, saved)
            found = self.figures(restored)
            self.assertEqual(list(found), ["floor", "vireo", "vireo copy", "vireo standby"])
            self.assertTrue(0 < found["vireo standby"]["loaded"] < found["vireo standby"]["answer"], found)
            for name in ("vireo", "vireo copy"):
                self.assertTrue(0 < found[name]["entry"] < found[name]["answer"], found)
            # A copy has the guest's memory for itself.
            self.assertGreater(found["vireo copy"]["anonymous"], found["vireo"]["anonymous"] + (2 << 20))

    def test_together(self):
        saved, restored = self.bench("--sizes", "64", "--together", "5")
        self.assertEqual(self.figures(saved).keys(), {"vireo"})
        found = self.figures(restored)
        self.assertEqual(restored["name"], "64 MiB, 5 restored together")
        self.assertEqual([each["good"] for each in restored["contenders"]], [2, 2])
        self.assertLessEqual(found["vireo"]["first of all"], found["vireo"]["marker"])
        self.assertTrue(0 < found["vireo"]["anonymous"] < found["vireo"]["resident"])

    def test_a_vireo_that_cannot_is_told_of(self):
        done = subprocess.run(
            [sys.executable, ROOT / "tools/vireo-bench", "restore", "--vireo", "/bin/false", "--floor", FLOOR,
             "--probe", PROBE, "--sizes", "64", "--saves", "1", "--runs", "1"], capture_output=True, check=False,
            timeout=300)
        self.assertEqual(done.returncode, 1, done)
        self.assertIn(b"vireo                      no good run\n", done.stdout)


class Arguments(unittest.TestCase):
    def test_a_linux_guest_is_the_same_for_all(self):
        arguments = argparse.Namespace(probe=None, kernel="k", initramfs="i", cpus=2, data=4)
        guest = restore.guest_of(arguments, 256)
        self.assertEqual((guest.cpus, guest.memory, guest.initramfs), (2, 256, "i"))
        self.assertIn("vireo.do=echo", guest.words)


if __name__ == "__main__":
    unittest.main()
