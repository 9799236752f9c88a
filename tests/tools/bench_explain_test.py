#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo-bench boot --explain: what it makes of recorded reports, and how it judges changes."""
import html.parser
import io
import pathlib
import random
import re
import sys
import tomllib
import unittest
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/bench"))
import changes  # noqa: E402
import explain  # noqa: E402
import explain_report  # noqa: E402
import explained_boot  # noqa: E402
import measure  # noqa: E402
import paired  # noqa: E402
import toml_text  # noqa: E402
import trials  # noqa: E402

TIMELINE = {"version": 1, "steps": [
    {"name": name, "at_us": at, "cpu_us": cpu} for name, at, cpu in (
        ("process_start", 0, 2000), ("config_parsed", 1000, 2900), ("kvm_ready", 11000, 3000),
        ("memory_ready", 12000, 3500), ("devices_ready", 12100, 3600), ("kernel_loaded", 32100, 23000),
        ("first_entry", 33000, 24000), ("ready", 33001, 24000), ("guest_mark:1", 933000, 900000),
        ("guest_mark:2", 943000, 910000), ("end", 983000, 940000))]}
LOG = "debug boot: kernel at 0x2c00000: prepared in 0 us, populated in 5000, read in 12000, relocated in 2000\n"


def exits(phase, reason, count, microseconds, **place):
    return {"phase": phase, "reason": reason, **place, "count": count, "handling_us": microseconds}


PROFILE = {
    "version": 1,
    "vcpus": [
        {"vcpu": 0, "in_kvm_run_us": 900000, "kvm": {"pf_taken": 45, "pf_fixed": 40, "exits": 2000,
                                                     "halt_wait_ns": 50_000_000, "halt_poll_fail_ns": 1_000_000},
         "exits": [
             exits(0, "io", 400, 4000, address="0x3f8", direction="write", device="serial"),
             exits(0, "io", 400, 1000, address="0x3fd", direction="read", device="serial"),
             exits(1, "io", 100, 500, address="0x3f8", direction="write", device="serial"),
             exits(0, "rdmsr", 7, 70, address="0xc0010015", direction="read"),
             exits(0, "rdmsr", 1, 1, address="other", direction="read"),
             exits(2, "intr", 3, 9)]},
        {"vcpu": 1, "in_kvm_run_us": 100000, "kvm": {"pf_fixed": 2, "exits": 10},
         "exits": [exits(0, "io", 100, 100, address="0x3f8", direction="write", device="serial")]}],
    "kvm": {"pages_2m": 40},
    "phases": [{"phase": 0, "pages_touched": 20000}, {"phase": 1, "pages_touched": 12},
               {"phase": 2, "pages_touched": 0}],
    "guest_steps": []}
COSTS = {"round_trip": 10e-6, "in_kvm": 5e-6, "fault": 100e-6, "fault_how": "measured"}


def with_steps(*steps):
    return dict(PROFILE, guest_steps=[{"name": name, "duration_us": us} for name, us in steps])


def explained(initcalls=(), timeline=None, **keywords):
    boot = {"wall": 1.0, "cpu": 0.95, "timeline": timeline or TIMELINE, "profile": PROFILE, "log": LOG,
            "console_bytes": 590} | keywords
    return explain.explain(boot, COSTS, initcalls)


def result(explanation, rows=(), together=(), line="console=ttyS0 quiet"):
    return {"machine": {"cpu": "x"}, "settings": {"runs": 9}, "explanation": explanation,
            "command_line": line, "changes": list(rows), "together": list(together)}


def text_of(found):
    out = io.StringIO()
    explain_report.table(found, out)
    return out.getvalue()


class Analysis(unittest.TestCase):
    def test_the_parts_add_up_to_the_whole(self):
        found = explained()
        parts = [*found["before"], *found["phases"], found["end"]]
        self.assertAlmostEqual(sum(part["seconds"] for part in parts), 1.0)
        at = 0.0
        for part in parts:
            self.assertAlmostEqual(part["begin"], at, msg=part["label"])
            at += part["seconds"]

    def test_steps_before_the_first_instruction(self):
        steps = {step["name"]: step for step in explained()["before"]}
        self.assertEqual(list(steps), ["process_start", "config_parsed", "kvm_ready", "memory_ready",
                                       "devices_ready", "kernel_loaded", "first_entry"])
        self.assertAlmostEqual(steps["process_start"]["seconds"], 0.002)
        self.assertAlmostEqual(steps["kvm_ready"]["seconds"], 0.010)
        self.assertAlmostEqual(steps["kvm_ready"]["cpu"], 0.0001)
        self.assertEqual([(part["label"], part["seconds"]) for part in steps["kernel_loaded"]["parts"]],
                         [("prepared", 0.0), ("memory populated", 0.005), ("read", 0.012), ("relocated", 0.002)])

    def test_phases_of_the_guest(self):
        phases = explained()["phases"]
        self.assertEqual([(phase["label"], phase["pages_touched"], phase["exits"]) for phase in phases],
                         [("to mark 1", 20000, 908), ("mark 1 to mark 2", 12, 100), ("mark 2 to the end", 0, 3)])
        without_marks = {"steps": [step for step in TIMELINE["steps"] if "mark" not in step["name"]]}
        self.assertEqual([phase["label"] for phase in explained(timeline=without_marks)["phases"]], ["to the end"])

    def test_exits_are_added_up_over_processors_and_phases(self):
        found = explained()
        first = found["exits"][0]
        self.assertEqual((first["kind"], first["direction"], first["device"], first["place"], first["count"]),
                         ("io", "write", "serial", "0x3f8", 600))
        self.assertAlmostEqual(first["seconds"], 0.0046)
        self.assertEqual(first["phases"], {"0": 500, "1": 100})
        self.assertIn(("rdmsr", "0xc0010015 HWCR", 7), [(row["kind"], row["place"], row["count"])
                                                        for row in found["exits"]])
        self.assertEqual({row["kind"]: row["count"] for row in found["exits_by_kind"]},
                         {"io": 1000, "rdmsr": 8, "intr": 3})
        self.assertEqual([row["device"] for row in found["exits_by_device"]], ["serial"])
        self.assertEqual(found["kvm"]["pf_fixed"], 42)

    def test_where_the_guests_time_went(self):
        found = explained()
        self.assertAlmostEqual(found["guest"]["in_kvm_run"], 1.0)
        self.assertAlmostEqual(found["guest"]["handling"], 0.00568)
        self.assertAlmostEqual(found["guest"]["halted"], 0.051)
        reckoned = {key: (figure["count"], round(figure["estimate"], 6))
                    for key, figure in found["estimates"].items()}
        self.assertEqual(reckoned, {"page_faults": (42, 0.0042), "exits_to_vireo": (1011, 0.01011),
                                    "exits_in_kvm": (954, 0.00477)})

    def test_the_console(self):
        console = explained()["console"]
        self.assertEqual((console["bytes"], console["exits"]), (590, 1000))
        self.assertAlmostEqual(console["handling"], 0.0056)
        self.assertAlmostEqual(console["estimate"], 0.0156)

    def test_without_a_measured_exit_nothing_is_reckoned_from_one(self):
        found = explain.explain({"wall": 1.0, "cpu": 1.0, "timeline": TIMELINE, "profile": PROFILE, "log": "",
                                 "console_bytes": 0}, {"fault": 1e-6, "fault_how": "at least"})
        self.assertEqual(list(found["estimates"]), ["page_faults"])
        self.assertNotIn("estimate", found["console"])

    def test_init_functions_have_their_least_time(self):
        calls = explain.least_initcalls([with_steps(("a", 900), ("twice", 10), ("twice", 20)),
                                         with_steps(("twice", 15), ("a", 500), ("twice", 5))])
        self.assertEqual(calls, [{"name": "a", "seconds": 500e-6}, {"name": "twice", "seconds": 10e-6},
                                 {"name": "twice", "seconds": 5e-6}])


class Statistics(unittest.TestCase):
    def rounds(self, shift, seed, count=9):
        noise = random.Random(seed)
        slow = [noise.uniform(0, 0.3) for _ in range(count)]  # what a whole round suffers
        return ([1 + late + noise.gauss(0, 0.02) for late in slow],
                [1 - shift + late + noise.gauss(0, 0.02) for late in slow])

    def test_noise_stands_out_as_seldom_as_is_said(self):
        found = [paired.compare(*self.rounds(0, seed)) for seed in range(400)]
        self.assertLess(sum(one.significant for one in found), 400 * 0.07)
        for one in found:
            self.assertEqual(one.significant, not one.low <= 0 <= one.high, one)

    def test_a_shift_beneath_the_noise_of_rounds_is_found(self):
        for shift in (0.08, -0.08):
            found = [paired.compare(*self.rounds(shift, seed)) for seed in range(50)]
            self.assertGreater(sum(one.significant for one in found), 48)
            self.assertTrue(all(one.low <= one.saving <= one.high for one in found))
            self.assertAlmostEqual(sum(one.saving for one in found) / 50, shift, delta=0.01)

    def test_five_rounds_tell_nothing(self):
        found = paired.compare([2.0] * 5, [1.0] * 5)
        self.assertEqual((found.saving, found.low, found.significant), (1.0, None, False))
        self.assertTrue(paired.compare([2.0] * 6, [1.0] * 6).significant)

    def test_known_values(self):
        # Of 2^6 ways to sign six ranks, 1 is as one-sided as all positive, on either side.
        self.assertEqual(paired.chance([1, 2, 3, 4, 5, 6]), 2 / 64)
        self.assertEqual(paired.chance([-1, 2, 3, 4, 5, 6]), 4 / 64)
        self.assertEqual(paired.chance([1, -1, 0]), 1.0)
        self.assertEqual(paired.interval([1, 2, 3, 4, 5, 6]), (3.5, 1, 6))


def base(line="console=ttyS0 panic=-1 cryptomgr.notests quiet vireo.do=reboot", **config):
    return changes.Base({"boot": {"append": "quiet vireo.do=reboot", "kernel": "k"},
                         "machine": {"cpus": 1, "memory": "256M", "hugepages": "off", "prefault": False},
                         "serial": {"mode": "stdio"}} | config, line, line is not None, True,
                        [{"name": "slow_init", "seconds": 0.5}, {"name": "populate_rootfs", "seconds": 1.0}])


class Changes(unittest.TestCase):
    def boot(self, *names, of=None):
        return changes.apply(of or base(), names)["boot"]

    def test_words_are_added_and_left_out(self):
        self.assertEqual(self.boot("tsc=reliable"), {"append": "quiet vireo.do=reboot tsc=reliable", "kernel": "k"})
        self.assertEqual(self.boot("without=quiet")["append"], "vireo.do=reboot")
        self.assertEqual(self.boot("without=panic=-1", "noresume", "without=quiet"),
                         {"append": "vireo.do=reboot noresume", "kernel": "k",
                          "cmdline": "console=ttyS0 cryptomgr.notests"})
        self.assertEqual(self.boot("initcall_blacklist=a", "initcall_blacklist=b")["append"],
                         "quiet vireo.do=reboot initcall_blacklist=a,b")

    def test_a_line_of_ones_own(self):
        own = base(boot={"cmdline": 'a="b c" d', "append": "e", "kernel": "k"}, line=None)
        self.assertEqual(self.boot("without=d", of=own)["cmdline"], 'a="b c"')
        self.assertEqual(self.boot('without=a="b c"', of=own)["cmdline"], "d")
        with self.assertRaises(changes.NotApplicable):
            self.boot("without=quiet", of=own)

    def test_a_line_that_was_cut_off_is_not_taken_apart(self):
        with self.assertRaises(changes.NotApplicable):
            self.boot("without=panic=-1", of=base(line="console=ttyS0 panic=-1 quiet vireo.do=reb"))

    def test_keys_and_devices(self):
        of = base(disk=[{"id": "a"}, {"id": "b", "root": True}], vsock={"cid": 3})
        config = changes.apply(of, ["machine.prefault=true", "machine.cpus=2", "without=disk/a", "without=vsock/"])
        self.assertEqual((config["machine"]["prefault"], config["machine"]["cpus"]), (True, 2))
        self.assertEqual(config["disk"], [{"id": "b", "root": True}])
        self.assertNotIn("vsock", config)
        self.assertEqual(of.config["machine"]["cpus"], 1)  # the base is as it was
        for name in ("machine.cpus=1", "without=disk/c", "without=net/x"):
            with self.assertRaises(changes.NotApplicable):
                changes.apply(of, [name])
        offered = [change.name for change in changes.candidates(of)]
        self.assertIn("without=disk/a", offered)
        self.assertNotIn("without=disk/b", offered)  # the guest's root

    def test_what_is_offered(self):
        offered = {change.name: change for change in changes.candidates(base())}
        for name in ("without=panic=-1", "without=quiet", "without=cryptomgr.notests", "tsc=reliable",
                     "machine.hugepages=2M", "boot.unpack=off", "initcall_blacklist=slow_init", "acpi=off"):
            self.assertIn(name, offered)
        for name in ("quiet", "cryptomgr.notests", "console=ttyS0", "machine.cpus=1",
                     "initcall_blacklist=populate_rootfs", "without=vireo.do=reboot"):
            self.assertNotIn(name, offered)
        for name in ("mitigations=off", "nokaslr", "boot.kaslr=off", "random.trust_cpu=on"):
            self.assertIn("security", offered[name].trade)
        two = base(machine={"cpus": 2, "memory": "256M"})
        self.assertNotIn("acpi=off", [change.name for change in changes.candidates(two)])
        self.assertIn("machine.cpus=1", [change.name for change in changes.candidates(two)])

    def test_a_kernel_that_tells_no_line_is_offered_no_words(self):
        offered = [change.name for change in changes.candidates(base(line=None))]
        self.assertIn("machine.prefault=true", offered)
        self.assertFalse([name for name in offered if "quiet" in name or "initcall" in name])

    def test_configurations_survive_being_written(self):
        config = {"name": "a\"b\\\x7f\u00e9\n", "machine": {"cpus": 2, "prefault": True, "topology": {"cores": 2}},
                  "disk": [{"id": "a", "size": 1}], "list": []}
        self.assertEqual(tomllib.loads(toml_text.write(config)), config)

    def test_the_line_that_a_kernel_shows(self):
        shown = explained_boot.shown_line
        words = explained_boot.EXPLAINING_WORDS
        self.assertEqual(shown(f"x\r\n[    0.0] Command line: a b {words}\r\n[ 0.1] y"), "a b")
        self.assertIsNone(shown("[    0.0] Command line: a b\r\n"))  # cut off
        self.assertIsNone(shown("probe: hello\n"))


def fake_trials(effects, failing=(), runs=9, seed=1):
    """Trials in which a boot is a `sh` that ends at once and its time is made up: 1 s, less the effects."""
    noise = random.Random(seed)

    def run_once(contender, _timeout):
        if any(name in contender.command[-1] for name in failing):
            return measure.Run(False, "status 11: panic", status=11)
        gain = sum(effect for name, effect in effects.items() if name in contender.command[-1].split())
        return measure.Run(True, "", 1 - gain + noise.gauss(0, 0.01), 0.5, status=0)

    def boots(name, config):
        return measure.Contender(name, [config["boot"]["append"]])
    return run_once, trials.Trials(base(), boots, runs=runs, timeout=1, progress=lambda text, stage: None,
                                   warm_up=lambda: None)


class Trials(unittest.TestCase):
    def try_all(self, names, effects, failing=(), **keywords):
        run_once, tried = fake_trials(effects, failing, **keywords)
        kept, measure.run_once = measure.run_once, run_once
        try:
            rows, together = tried.run(changes.named(base(), names))
        finally:
            measure.run_once = kept
        return {row["name"]: row for row in rows}, together

    def test_what_saves_is_found_confirmed_and_put_together(self):
        rows, together = self.try_all(
            ["i8042.noaux", "tsc=reliable", "mitigations=off", "edd=off", "no_timer_check", "audit=0", "debugfs=off"],
            {"i8042.noaux": 0.1, "edd=off": -0.1, "mitigations=off": 0.2, "no_timer_check": 0.05})
        self.assertEqual({name: row["verdict"] for name, row in rows.items()}, {
            trials.CONTROL: "within the noise", "i8042.noaux": "saves", "tsc=reliable": "within the noise",
            "mitigations=off": "saves", "edd=off": "costs", "no_timer_check": "saves", "audit=0": "within the noise",
            "debugfs=off": "within the noise"})
        self.assertAlmostEqual(rows["i8042.noaux"]["saving"], 0.1, delta=0.02)
        self.assertIn("first_pass", rows["i8042.noaux"])
        self.assertEqual([sorted(row["members"]) for row in together],
                         [["i8042.noaux", "no_timer_check"], ["i8042.noaux", "mitigations=off", "no_timer_check"]])
        self.assertAlmostEqual(together[0]["saving"], 0.15, delta=0.02)
        self.assertIn("security", together[1]["trade"])

    def test_a_guest_that_fails_saves_nothing(self):
        rows, together = self.try_all(["i8042.noaux"], {"i8042.noaux": 0.9}, failing=["i8042.noaux"])
        self.assertEqual((rows["i8042.noaux"]["verdict"], together), ("fails", []))
        # It is found out before any round, which it would only make longer.
        self.assertEqual(rows["i8042.noaux"]["failure"], "status 11: panic")
        self.assertNotIn("saving", rows["i8042.noaux"])

    def test_luck_is_not_confirmed(self):
        change = changes.Change("x")

        def judged(shift):
            runs = [measure.Run(True, "", 1.0 - shift - i / 1000, 1.0) for i in range(9)]
            return trials.judge(change, runs, [measure.Run(True, "", 1.0, 1.0)] * 9)
        self.assertEqual(judged(0.1)["verdict"], "saves")
        self.assertEqual(trials.confirmed(judged(0.1), judged(-0.004))["verdict"], "not confirmed")
        self.assertEqual(trials.confirmed(judged(0.1), judged(0.05))["verdict"], "saves")

    def test_boots_that_failed_in_a_round(self):
        good, late = measure.Run(True, "", 1.0, 1.0, status=0), measure.Run(False, "not over after 10 s")
        ended = measure.Run(False, "status 11: panic", status=11)

        def judged(runs, base_runs):
            return trials.judge(changes.Change("x"), runs, base_runs)
        self.assertEqual(judged([good, ended, good, good], [good] * 4)["failure"], "1 of 4 boots: status 11: panic")
        self.assertEqual(judged([late, good, late, good], [good] * 4)["failure"],
                         "2 of 4 boots: not over after 10 s")
        # One that was late is a round less, with the change or without it.
        for runs, base_runs in (([good] * 4, [good, late, good, good]), ([late, good, good, good], [good] * 4)):
            row = judged(runs, base_runs)
            self.assertEqual((row["rounds"], row["lost"], row["verdict"]), (3, 1, "too few rounds"))

    def test_a_failure_names_the_panic(self):
        trace = b"[    2.0]  ? a_function+0x1/0x2\r\n" * 99
        said = b"ready\r\n[    2.0] Kernel panic - not syncing: No root\r\n" + trace
        self.assertEqual(measure.telling(said), "Kernel panic - not syncing: No root")
        self.assertTrue(measure.telling(b"x" * 999 + b"vireo: no such kernel\n").endswith("xvireo: no such kernel"))

    def test_of_changes_of_one_thing_the_better_is_taken(self):
        rows = [{"name": name, "saving": saving} for name, saving in
                (("machine.hugepages=2M", 1), ("machine.hugepages=transparent", 2), ("quiet", 3))]
        self.assertEqual([row["name"] for row in trials.best_of_each_slot(rows)],
                         ["quiet", "machine.hugepages=transparent"])


class Page(html.parser.HTMLParser):
    """The tags of a page, and the rectangles of its drawing by title."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.titles, self.rectangles, self.in_title = [], [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.in_title = tag == "title"
        if tag == "rect":
            self.rectangles.append({key: float(dict(attributes)[key]) for key in ("x", "y", "width")})

    def handle_data(self, data):
        if self.in_title:
            self.titles.append(data)
            self.in_title = False


class Reports(unittest.TestCase):
    HOSTILE = '<script>alert(1)</script>"\x1b[2J&amp;\x07'

    def hostile(self):
        found = explained([with_steps((self.HOSTILE, 9000))])
        found["exits"][0]["device"] = self.HOSTILE
        found["kvm"][self.HOSTILE] = 1
        row = trials.row(changes.Change(self.HOSTILE), "fails", why=self.HOSTILE)
        return result(found, [row], [row], line=self.HOSTILE)

    def test_what_a_guest_made_is_text_in_html(self):
        text = explain_report.page(self.hostile())
        page = Page(text)
        self.assertNotIn("script", [tag for tag, _ in page.tags])
        self.assertNotIn("\x1b", text)
        self.assertIn("&lt;script&gt;alert(1)&lt;/script&gt;&quot;\\x1b[2J&amp;amp;\\x07", text)

    def test_what_a_guest_made_is_printable_in_tables(self):
        text = text_of(self.hostile())
        self.assertTrue(text.replace("\n", "").isprintable())
        self.assertIn("<script>alert(1)</script>\"\\x1b[2J", text)

    def test_the_drawing_nests(self):
        calls = [with_steps(("one_init", 100_000), ("two_init", 50_000))]
        page = Page(explain_report.page(result(explained(calls))))
        self.assertFalse([tag for tag, attributes in page.tags
                          if tag in ("script", "link", "img") or "src" in attributes or "href" in attributes])
        named = zip(page.titles[1:], page.rectangles)  # the first title is the page's
        drawn = {}
        for title, rectangle in named:
            drawn.setdefault(re.split("[,:]", title)[0], rectangle)
        for inner, outer in (("guest", "vireo"), ("to mark 1", "guest"), ("one_init", "to mark 1"),
                             ("KVM opened", "before the first instruction")):
            within, around = drawn[inner], drawn[outer]
            self.assertGreater(within["y"], around["y"])
            self.assertGreaterEqual(within["x"] + 0.01, around["x"])
            self.assertLessEqual(within["x"] + within["width"], around["x"] + around["width"] + 0.01)
        self.assertAlmostEqual(drawn["one_init"]["width"], 2 * drawn["two_init"]["width"], delta=0.02)
        self.assertAlmostEqual(drawn["guest"]["width"] / drawn["vireo"]["width"], 0.95, delta=0.001)

    def test_labels_fit_their_rectangles(self):
        self.assertEqual(explain_report.shortened("before", 60), "before")
        self.assertEqual(explain_report.shortened("before the first", 60), "before…")
        self.assertEqual(explain_report.shortened("before", 30), "")

    def test_the_drawings_are_well_formed(self):
        drawings = re.findall("<svg.*?</svg>", explain_report.page(self.hostile()), re.DOTALL)
        self.assertEqual(len(drawings), 2)
        roots = [xml.etree.ElementTree.fromstring(drawing) for drawing in drawings]
        self.assertEqual([root.find("g/title").text for root in roots],
                         ["vireo: 1 s", "before the first instruction: 35 ms"])
        self.assertEqual([root.find("g/rect").get("width") for root in roots], ["1120.00"] * 2)

    def test_functions_longer_than_their_phase_are_shrunk_into_it(self):
        tree = explain_report.tree(explained([with_steps(("a", 3_000_000), ("b", 1_000_000))]))
        phase = tree["children"][1]["children"][0]
        self.assertAlmostEqual(sum(call["seconds"] for call in phase["children"]), phase["seconds"])

    def test_the_table_has_every_part(self):
        row = trials.judge(changes.Change("x=1", trade="security: y"), [measure.Run(True, "", 0.9, 0.9)] * 9,
                           [measure.Run(True, "", 1.0, 1.0)] * 9)
        text = text_of(result(explained([with_steps(("slow_init", 90_000))]), [row], [dict(row, members=["x=1"])]))
        for words in ("KVM opened, VM created", "memory populated", "guest: mark 1 to mark 2", "0x3f8",
                      "HWCR", "pf_fixed", "slow_init", "estimated", "590 bytes of console", "security: y",
                      "+100 ms", "10.0 %", "saves"):
            self.assertIn(words, text)
        self.assertRegex(text, r"x=1: saves 100 ms \(10\.0 %\); gives up: security: y")


if __name__ == "__main__":
    unittest.main()
