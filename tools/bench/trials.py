# SPDX-License-Identifier: Apache-2.0
"""Tries changes on a boot: each beside the unchanged one, in rounds of shuffled order.

Three passes, each of fresh boots. All changes are tried first; with so many some look good by chance, so
those that stood out are tried again and only count when they do so again; what saved time twice is
then put together.
"""
import changes
import measure
import paired

GROUP = 6  # changes that share a round with one unchanged boot, few enough to be near it in time
UNCHANGED = "(unchanged)"
CONTROL = "(the same again)"
LATE_SHARE = 0.25  # of a change's boots may be late without being held against it
REFUSED = range(64, 79)  # statuses with which vireo refuses what it was told


class Trials:
    """`boots(name, config)` makes a contender; `progress(text, stage)` is told what is under way, and
    whether that is a new stage."""

    def __init__(self, base, boots, *, runs, timeout, progress, warm_up):
        self.base = base
        self.boots = boots
        self.runs = runs
        self.timeout = timeout
        self.progress = progress
        self.warm_up = warm_up

    def usable(self, change):
        """(contender, None), or (None, row) for a change that cannot be made or ends the guest."""
        try:
            contender = self.boots(change.name, changes.apply(self.base, [change.name]))
        except changes.NotApplicable as reason:
            return None, row(change, "not applicable", why=str(reason))
        self.progress(f"checking {change.name}", False)
        for _ in range(2):
            run = measure.run_once(contender, self.timeout)
            if run.ok:
                return contender, None
            if run.status is not None:
                break
            # Not over in time: a machine may stand still for a moment, so that is tried once more.
        return None, row(change, "refused" if run.status in REFUSED else "fails", why=run.why)

    def rounds(self, contenders, what):
        """{name: (its Runs, those of the unchanged boot in the same rounds)}"""
        result = {}
        for at in range(0, len(contenders), GROUP):
            group = contenders[at:at + GROUP]
            self.progress(f"{what}: {at + 1} to {at + len(group)} of {len(contenders)}", True)
            self.warm_up()
            base = self.boots(UNCHANGED, self.base.config)

            def progress(number, contender, _run):
                self.progress(f"{'warm-up' if number < 0 else f'round {number + 1} of {self.runs}'}: "
                              f"{contender.name}", False)
            runs = measure.alternate([base, *group], self.runs, self.timeout, progress, lambda: None)
            for contender in group:
                result[contender.name] = runs[contender.name], runs[UNCHANGED]
        return result

    def judged(self, wanted, what):
        """Rows of [(Change, contender)], by one pass."""
        results = self.rounds([contender for _, contender in wanted], what)
        return [judge(change, *results[contender.name]) for change, contender in wanted]

    def run(self, wanted):
        """(rows of the changes, rows of those put together)"""
        rows, ready = {}, []
        for change in wanted:
            contender, failed = self.usable(change)
            if failed:
                rows[change.name] = failed
            else:
                ready.append((change, contender))
        control = changes.Change(CONTROL, "no change at all: what the noise looks like")
        ready.insert(0, (control, self.boots(CONTROL, self.base.config)))
        rows |= {found["name"]: found for found in self.judged(ready, "changes")}
        again = [(change, contender) for change, contender in ready
                 if rows[change.name]["verdict"] in ("saves", "costs")]
        for found in self.judged(again, "those that stood out"):
            rows[found["name"]] = confirmed(rows[found["name"]], found)
        ordered = [rows[change.name] for change, _ in ready[:1]] + [rows[change.name] for change in wanted]
        return ordered, self.together(ordered)

    def together(self, rows):
        """What saved time, in one boot: once what gives nothing up, once everything."""
        best = best_of_each_slot([found for found in rows if found["verdict"] == "saves"])
        free = [found for found in best if not found["trade"]]
        sets = [("all that give nothing up", free)] if free else []
        if len(best) > len(free):
            sets.append(("all, trades included", best))
        wanted, rows = [], []
        for label, members in sets:
            names = [member["name"] for member in members]
            trades = "; ".join(dict.fromkeys(member["trade"] for member in members if member["trade"]))
            change = changes.Change(label, " ".join(names), trades)
            contender = self.boots(label, changes.apply(self.base, names))
            wanted.append((change, contender))
        if wanted:
            rows = self.judged(wanted, "together")
            for found, (_, members) in zip(rows, sets):
                found["members"] = [member["name"] for member in members]
        return rows


def best_of_each_slot(rows):
    best = {}
    for found in sorted(rows, key=lambda found: -found["saving"]):
        best.setdefault(changes.slot(found["name"]), found)
    return list(best.values())


def row(change, verdict, **figures):
    return {"name": change.name, "why": change.why, "trade": change.trade, "verdict": verdict,
            "failure": figures.pop("why", ""), **figures}


def judge(change, runs, base_runs):
    """One change's row, from its runs and those of the unchanged boot, round by round."""
    failed = [run for run in runs if not run.ok]
    late = [run for run in failed if run.status is None]
    # A machine that stands still for a moment makes a boot late whatever the change; a guest that the
    # change ends, or keeps from ending, fails otherwise or more often.
    if len(failed) > len(late) or len(late) > len(runs) * LATE_SHARE:
        return row(change, "fails", why=f"{len(failed)} of {len(runs)} boots: {failed[0].why}")
    pairs = [(before, after) for before, after in zip(base_runs, runs) if before.ok and after.ok]
    if not pairs:
        return row(change, "fails", why="no unchanged boot to compare with was good")
    walls = [before.wall for before, _ in pairs], [after.wall for _, after in pairs]
    found = paired.compare(*walls)
    processor = paired.compare([before.cpu for before, _ in pairs], [after.cpu for _, after in pairs])
    return row(change, verdict_of(found), rounds=found.rounds, lost=len(runs) - len(pairs), base=found.base,
               saving=found.saving, ratio=found.ratio, low=found.low, high=found.high, p=found.p,
               cpu_saving=processor.saving, values={"base": walls[0], "changed": walls[1]})


def verdict_of(found):
    if found.significant:
        return "saves" if found.saving > 0 else "costs"
    return "too few rounds" if found.rounds < paired.LEAST_ROUNDS else "within the noise"


def confirmed(first, second):
    """The row of the second pass, whose boots were not chosen for their outcome."""
    if second["verdict"] != first["verdict"] and second["verdict"] != "fails":
        second["verdict"] = "not confirmed"
    second["first_pass"] = {key: first[key] for key in ("saving", "ratio", "low", "high", "p", "values")}
    return second
