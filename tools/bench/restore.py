# SPDX-License-Identifier: Apache-2.0
"""What it takes to save a guest and to have it go on in another process: vireo's, and those of peers.

A guest is begun, saved while it runs (it goes on behind that, and has to answer), and restored in another process from
the files of the last time, which are in the page cache. Figures:

    pause     seconds that the guest stands still for its snapshot: vireo's own report; of a peer, which wants it paused
              by who asks, from the request for that to the answer that it runs again
    saving    from the first request to the last answer
    file      bytes that the snapshot takes on the disk
    entry     from just before exec to the guest's first instruction: vireo's timeline, and the floor's own clock
    loaded    of a VM that stood by: from the request with the snapshot to the guest's first instruction; its
              other moments count from there too
    resumed   to where the process says that the guest runs: vireo --notify, Firecracker the answer to its API's
              request, Cloud Hypervisor its event monitor
    answer    to the first byte of what the guest answers on its console, asked as soon as the process is there
    resident, anonymous   all memory of the restored process when the guest has answered; anonymous is what it
              shares with nobody
"""
import contextlib
import dataclasses
import html
import math
import os
import re
import selectors
import statistics
import subprocess
import time

import linux_guest
import measure
import memory
import paired
import report
import together
from measure import Contender, Run
from savers import CloudHypervisor, Failed, Firecracker, Guest, Running, Vireo, allocated, left_of

WARM_BYTES = 256 << 20
SETTLE_SECONDS = 0.05
PROBE_SIZES = (128, 2048, 8192)  # MiB
LINUX_SIZES = (256,)
FLOOR_ENTRY = re.compile(rb"first_entry_us=(\d+)")
# Its timer comes once, after a minute.
PROBE_WORDS = "probe=hold 60000 memory={} end=reboot"
LINUX_WORDS = f"{linux_guest.BOOT_WORDS} vireo.do=echo"


def guest_of(arguments, size):
    if arguments.probe:
        return Guest(arguments.probe, PROBE_WORDS.format(arguments.data), size, b"hold=ready", b"a", b"hold=here",
                     cpus=1)
    return Guest(arguments.kernel, LINUX_WORDS, size, b"echo: ready", b"a\n", b"echo: a", arguments.initramfs,
                 arguments.cpus)


def savers_of(arguments, guest, work):
    """All VMMs that are given, each with a directory of its own for this guest."""
    def directory(name):
        path = work / f"{name}-{guest.memory}"
        path.mkdir(exist_ok=True)
        return path
    yield Vireo(arguments.vireo, guest, directory("vireo"))
    if arguments.firecracker:
        yield Firecracker(arguments.firecracker, guest, directory("firecracker"), arguments.firecracker_filters)
    if arguments.cloud_hypervisor:
        yield CloudHypervisor(arguments.cloud_hypervisor, guest, directory("cloud-hypervisor"))


# --- one run -----------------------------------------------------------------------------------------------

def tried(saver, run):
    """The Run that `run` makes, or a failed one with what the process said."""
    saver.socket.unlink(missing_ok=True)
    try:
        return run()
    except (Failed, OSError, ValueError, subprocess.TimeoutExpired) as why:
        said = saver.log.read_text(encoding="utf-8", errors="replace")[-300:] if saver.log.exists() else ""
        return Run(False, f"{why}: {said}".strip())


def run_save(saver, timeout):
    """A guest from its start to where it has been saved and still answers."""
    guest = saver.guest

    def run():
        deadline = time.monotonic() + timeout
        with Running(saver.command(), saver.log, terminal=saver.terminal) as running:
            running.await_text(guest.ready, deadline)
            before = time.monotonic()
            pause = saver.save(running, deadline)
            saving = time.monotonic() - before
            running.send(guest.question)
            running.await_text(guest.answer, deadline)
        return Run(True, "", extra={"pause": pause, "saving": saving, "file": allocated(saver.files())},
                   inspected=True)
    return tried(saver, run)


def run_restore(saver, way, timeout):
    def run():
        deadline = time.monotonic() + timeout
        told, tells = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, told)
            try:
                running = stack.enter_context(Running(saver.restore_command(way, tells), saver.log, (tells,),
                                                      saver.terminal))
            finally:
                os.close(tells)
            running.send(saver.guest.question)
            channel = saver.begin_restore(way, running, deadline)
            if channel is not None:
                stack.enter_context(channel)
            figures = listen(saver, running, told if channel is None else channel.fileno(), deadline)
            time.sleep(SETTLE_SECONDS)
            figures |= taken(running.process.pid)
            return Run(True, "", extra=saver.inspect(way, running, deadline) | figures, inspected=True)
    return tried(saver, run)


def listen(saver, running, channel, deadline):
    """{figure: seconds since the process's start} of what is to be heard of it from outside."""
    found = {}
    said = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(running.output, selectors.EVENT_READ, "answer")
        selector.register(channel, selectors.EVENT_READ, "resumed")
        while "resumed" not in found or saver.guest.answer not in running.said:
            for key, _ in selector.select(left_of(deadline)):
                now = (time.monotonic_ns() - running.started_ns) / 1e9
                if key.data == "answer":
                    running.read()
                    found.setdefault("answer", now)
                    continue
                chunk = os.read(channel, 65536)
                said += chunk
                if not chunk:
                    raise Failed(f"it did not say that the guest runs: {bytes(said[-300:])!r}")
                if saver.resumed in said:
                    found["resumed"] = now
                    selector.unregister(channel)
    return found


def taken(pid):
    """What the process has of the machine's memory, its guest's included."""
    fields = [fields for _, _, fields in memory.mappings(pid)]
    return {figure: sum(each[field] for each in fields)
            for figure, field in (("resident", "Rss"), ("anonymous", "Anonymous"))}


def floor_of(arguments, size):
    def entry(output, _start):
        return {"entry": int(FLOOR_ENTRY.search(output)[1]) / 1e6}
    return Contender("floor", [arguments.floor, "--memory", str(size), "--t0", "{t0}", "--mark", arguments.probe],
                     extra=entry)


def run_floor(contender, timeout):
    run = measure.run_once(contender, timeout)
    run.inspected = True  # only what it says of itself is to be compared
    return run


# --- all of them -------------------------------------------------------------------------------------------

def parts(arguments, work, progress_of):
    """For each size what saving and restoring took, for the report; `progress_of` takes a number of rounds and what
    they are of."""
    for size in arguments.sizes:
        guest = guest_of(arguments, size)
        savers = list(savers_of(arguments, guest, work))
        by_name = {saver.name: saver for saver in savers}
        saved = part(f"{size} MiB, saved", [Contender(saver.name, saver.command()) for saver in savers],
                     arguments.saves, arguments.timeout, progress_of,
                     lambda contender, timeout: run_save(by_name[contender.name], timeout))
        yield saved
        # What is written out meanwhile would be in the way.
        os.sync()
        able = [by_name[contender["name"]] for contender in saved["contenders"] if contender["good"]]
        if arguments.together and able:
            yield restored_together(arguments, size, able[0], work, progress_of)
        elif able:
            yield restored(arguments, size, able, progress_of)
        for saver in savers:
            for path in saver.files():
                path.unlink(missing_ok=True)


def part(name, contenders, rounds, timeout, progress_of, run):
    results = measure.alternate(contenders, rounds, timeout, progress_of(rounds, f"{name}: "),
                                lambda: memory.warm_up(0, beside=WARM_BYTES), run)
    return {"name": name, "contenders": measure.summaries(contenders, results)}


def restored(arguments, size, savers, progress_of):
    floor = [floor_of(arguments, size)] if arguments.floor else []
    runs = {each.name: run_floor for each in floor}
    contenders = floor
    for saver in savers:
        for way in saver.ways:
            contender = Contender(f"{saver.name} {way}".strip(), saver.restore_command(way, "N"))
            contenders.append(contender)
            runs[contender.name] = lambda _, timeout, saver=saver, way=way: run_restore(saver, way, timeout)
    return part(f"{size} MiB, restored", contenders, arguments.runs, arguments.timeout, progress_of,
                lambda contender, timeout: runs[contender.name](contender, timeout))


def restored_together(arguments, size, vireo, work, progress_of):
    """How soon many answer and end that are begun at once, beside as many floors, whose guests end when they have
    begun; and in a second run, in which they go on, the most that one of them takes."""
    questions = {text: work / f"{text}-{size}" for text in ("answer", "answer-and-end")}
    questions["answer"].write_bytes(vireo.guest.question)
    questions["answer-and-end"].write_bytes(vireo.guest.question + b"q")
    floor = Contender("floor", [arguments.floor, "--memory", str(size), arguments.probe], b"probe: start", good=(10,))
    ours = Contender("vireo", [vireo.program, "restore", str(vireo.files()[0])], vireo.guest.answer, good=(10,),
                     input=str(questions["answer-and-end"]))
    staying = dataclasses.replace(ours, input=str(questions["answer"]), inspect=taken)

    def run(contender, timeout):
        done = together.run_together(contender, arguments.together, timeout)
        if not done.ok or contender is not ours:
            return done
        try:
            each = together.inspect_together(staying, arguments.together, timeout)
        except RuntimeError as why:
            return Run(False, str(why))
        done.extra |= {figure: max(one[figure] for one in each) for figure in each[0]}
        return done
    return part(f"{size} MiB, {arguments.together} restored together", [floor, ours], arguments.runs,
                arguments.timeout, progress_of, run)


# --- the result --------------------------------------------------------------------------------------------

def beside(contender, contenders, key):
    """How this figure compares inside the rounds: `entry` to the floor's by the difference, the others to vireo's by
    the ratio; the middle of that, and its 95 % interval."""
    names = {each["name"]: each for each in contenders}
    base = names.get("floor") if key == "entry" else None
    differs = base is not None and base["figures"] is not None
    base = base if differs else names.get("vireo")
    if base in (None, contender) or key not in (base["figures"] or {}):
        return ""

    def show(value):
        return f"{value * 1e3:+.2f} ms" if differs else f"{math.exp(value):.2f}"
    scale = (lambda value: value) if differs else math.log
    own, other = contender["values"][key], base["values"][key]
    all_good = all(each["good"] == each["runs"] for each in (contender, base))
    if not all_good or min(own + other) <= 0:
        return show(scale(statistics.median(own)) - scale(statistics.median(other)))
    middle, low, high = paired.interval([scale(one) - scale(two) for one, two in zip(own, other)])
    return f"{show(middle)} ({show(low)} – {show(high)})" if low is not None else show(middle)


def row(contender, key, contenders):
    figure = contender["figures"][key]
    least, median, p99, low, high = (report.show(figure[name], key)
                                     for name in ("min", "median", "p99", "median_low", "median_high"))
    good = f"{contender['good']}/{contender['runs']}"
    return (f"  {contender['name']:26} {key:13} {least:>9} {median:>9} {f'{low} – {high}':>21} {p99:>9} {good:>7}  "
            f"{beside(contender, contenders, key)}").rstrip() + "\n"


def table(result, out):
    """For each part a row for each contender and figure; `beside` is the difference to the floor's first instruction,
    or the ratio to vireo's figure."""
    for found in result["parts"]:
        contenders = found["contenders"]
        out.write(f"{found['name']}\n  {'contender':26} {'figure':13} {'min':>9} {'median':>9} "
                  f"{'95 % of median':>21} {'p99':>9} {'good':>7}  beside\n")
        for contender in contenders:
            for key in contender["figures"] or {}:
                out.write(row(contender, key, contenders))
            if not contender["figures"]:
                out.write(f"  {contender['name']:26} no good run\n")
        for contender in contenders:
            for failure in contender["failures"]:
                out.write(f"  failed: {contender['name']}: {failure}\n")
        out.write("\n")
    out.write("commands:\n")
    for contender in commands(result):
        out.write(f"  {contender['name']}: {' '.join(contender['command'])}\n")


def commands(result):
    """Those of the first size: how guests are begun, and how they are restored."""
    return [contender for found in result["parts"][:2] for contender in found["contenders"]]


def page(result):
    sections = []
    for found in result["parts"]:
        sections.append(f"<h2>{html.escape(found['name'])}</h2>")
        keys = dict.fromkeys(key for contender in found["contenders"] for key in contender["figures"] or {})
        sections.extend(f"<h3>{html.escape(key)}</h3>{report.plot(found, key)}" for key in keys)
    return report.document(result, sections, commands(result))
