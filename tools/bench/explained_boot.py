# SPDX-License-Identifier: Apache-2.0
"""`vireo-bench boot --explain`: boots once with every report, says where the time went, tries what may
make it less, and says what did."""
import copy
import itertools
import json
import pathlib
import re
import subprocess
import time
import tomllib

import changes
import costs
import explain
import measure
import memory
import toml_text
from trials import Trials

# With these the kernel tells of each of its init functions, to the console as well.
EXPLAINING_WORDS = "initcall_debug ignore_loglevel"
# At most so many, and no more than --runs. Of the profiled ones the middle one is explained.
PROFILED_BOOTS = INITCALL_BOOTS = 3
INITCALL_SECONDS = 20  # no further one after so long
GOOD_STATUSES = (0, 10)  # the guest powered off, or rebooted


class CannotExplain(Exception):
    """The boot is none that could be explained; the text says why."""


def resolved(arguments):
    """The configuration as vireo understands it, every default filled in."""
    command = [arguments.vireo, "check"]
    if arguments.config:
        command.append(arguments.config)
    for option in ("kernel", "initramfs", "cmdline", "append"):
        if getattr(arguments, option) is not None:
            command += [f"--{option}", getattr(arguments, option)]
    if arguments.cpus is not None:
        command += ["--cpus", str(arguments.cpus)]
    if arguments.memory is not None:
        command += ["--memory", f"{arguments.memory}M"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    if done.returncode != 0:
        raise CannotExplain(done.stderr.decode(errors="replace").strip())
    return tomllib.loads(done.stdout.decode())


def is_bzimage(path):
    with open(path, "rb") as file:
        head = file.read(0x206)
    return head[0x202:] == b"HdrS"


def marks(timeline):
    return [step["name"] for step in timeline["steps"] if step["name"].startswith("guest_mark")]


class Boots:
    """Makes contenders of configurations, each with files of its own in `work`."""

    def __init__(self, vireo, work):
        self.vireo = vireo
        self.work = work
        self.numbers = itertools.count()
        self.expect(GOOD_STATUSES, None)

    def expect(self, statuses, wanted_marks):
        """How boots have to end from now on, and which marks their guests must have reached."""
        self.good = statuses
        self.wanted_marks = wanted_marks

    def contender(self, name, config, *options):
        place = self.work / str(next(self.numbers))
        place.mkdir()
        settings, timeline = place / "config.toml", place / "timeline.json"
        settings.write_text(toml_text.write(config), encoding="utf-8")

        def check():
            if self.wanted_marks is None:
                return ""
            reached = marks(json.loads(timeline.read_text(encoding="ascii")))
            return "" if reached == self.wanted_marks else \
                f"the guest reached {reached} instead of {self.wanted_marks}"
        return measure.Contender(name, [self.vireo, "run", str(settings), "--timeline", str(timeline),
                                        *options], good=self.good, check=check)

    def observed(self, config, timeout):
        """One boot with every report."""
        number = next(self.numbers)
        profile, log = self.work / f"{number}.profile.json", self.work / f"{number}.log"
        contender = self.contender("explained", config, "--profile", str(profile), "--log-level", "debug",
                                   "--log-file", str(log))
        console = []
        contender.extra = lambda output, _start: console.append(output) or {}
        run = measure.run_once(contender, timeout)
        if not run.ok:
            raise CannotExplain(f"the guest must come to an end by itself, by a power-off or a reboot: {run.why}")
        timeline = contender.command[contender.command.index("--timeline") + 1]
        return {"wall": run.wall, "cpu": run.cpu, "status": run.status,
                "console": console[0].decode(errors="replace"), "console_bytes": len(console[0]),
                "timeline": json.loads(pathlib.Path(timeline).read_text(encoding="ascii")),
                "profile": json.loads(profile.read_text(encoding="ascii")),
                "log": log.read_text(encoding="utf-8", errors="replace")}


def explaining(config):
    """The same guest, telling its steps on a console that is read here."""
    config = copy.deepcopy(config)
    boot = config["boot"]
    boot["append"] = f"{boot.get('append', '')} {EXPLAINING_WORDS}".strip()
    config["serial"] = {"mode": "stdio"}
    return config


def shown_line(console):
    """The command line that a Linux kernel says it got, without what was added to explain it."""
    found = re.search(r"\bCommand line: (.*?)\r?$", console, re.MULTILINE)
    if not found:
        return None
    line = found[1].strip()
    return line.removesuffix(EXPLAINING_WORDS).strip() if line.endswith(EXPLAINING_WORDS) else None


def initcall_boots(boots, config, timeout, most):
    """(profiles, console of the first) of boots whose kernel tells its steps. Only the console makes them
    long, so there are few of them where it is slow; a kernel that tells nothing boots once."""
    began, seen = time.monotonic(), []
    while len(seen) < min(INITCALL_BOOTS, most) and (not seen or time.monotonic() - began < INITCALL_SECONDS):
        seen.append(boots.observed(explaining(config), timeout))
        if not seen[0]["profile"]["guest_steps"]:
            break
    return [boot["profile"] for boot in seen], seen[0]["console"]


def cost_of_one(arguments, config, work):
    if not arguments.probe:
        return costs.without_probe()
    try:
        return costs.with_probe(arguments.vireo, arguments.probe, config, work)
    except (RuntimeError, subprocess.SubprocessError) as error:
        raise CannotExplain(str(error)) from None


def run(arguments, work, progress):
    """Everything that `boot --explain` finds out, as the tables and the JSON want it."""
    config = resolved(arguments)
    boots = Boots(arguments.vireo, work)
    progress("profiled boots")
    warm_up(config)
    boots.observed(config, arguments.timeout)  # fills the caches
    profiled = sorted((boots.observed(config, arguments.timeout) for _ in range(min(PROFILED_BOOTS, arguments.runs))),
                      key=lambda boot: boot["wall"])
    middle = profiled[len(profiled) // 2]
    progress("boots whose kernel tells its steps")
    profiles, console = initcall_boots(boots, config, arguments.timeout, arguments.runs)
    progress("what one exit and one page fault cost")
    explanation = explain.explain(middle, cost_of_one(arguments, config, work), profiles)
    line = shown_line(console)
    base = changes.Base(config, line, line is not None, is_bzimage(config["boot"]["kernel"]),
                        explanation["initcalls"])
    result = {"explanation": explanation, "command_line": line, "config": config,
              "changes": [], "together": []}
    if not arguments.no_try:
        boots.expect((middle["status"],), marks(middle["timeline"]))
        trials = Trials(base, boots.contender, runs=arguments.runs, progress=progress,
                        timeout=min(arguments.timeout, max(10.0, 10 * middle["wall"])),
                        warm_up=lambda: warm_up(config))
        wanted = changes.named(base, arguments.tried) if arguments.tried else changes.candidates(base)
        result["changes"], result["together"] = trials.run(wanted)
    return result


def warm_up(config):
    """Touches memory for a few guests of this size."""
    size = config["machine"]["memory"]  # "512M" and the like
    memory.warm_up(int(size[:-1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[size[-1]], guests=4, beside=0)
