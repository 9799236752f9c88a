#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the guest holds, by probe=hold, on both sides of a pause: registers, timer, clocks, memory."""
import pathlib
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from probe_hold import HoldTest  # noqa: E402
from vireo_process import PROBE, run  # noqa: E402

TIMER_MS = 200
# The timer and the TSC are clocks of their own.
EARLY_US_MAX = 10000


class Hold(HoldTest):
    def check_after_timer(self):
        time.sleep(2.5 * TIMER_MS / 1000)  # so that one that comes twice has done so
        end = time.monotonic() + 30
        while (found := self.check())["timer"] == "0":
            self.assertLess(time.monotonic(), end, "the timer does not come")
            time.sleep(0.05)
        return found

    def pause(self, seconds):
        self.control("pause")
        time.sleep(seconds)
        self.control("resume")

    def test_a_pause_changes_nothing(self):
        self.start("60000 memory=8")
        before = self.check()
        self.pause(0.3)
        after = self.check()
        # Still the first one, far from its time.
        self.assertEqual((before["timer"], after["timer"]), ("0", "0"))
        for clock in ("tsc", "kvmclock_ns"):
            self.assertGreater(int(after[clock]), int(before[clock]))
        self.quit()

    def test_an_answer_is_nothing_else(self):
        self.start("60000")
        for _ in range(2):
            self.process.stdin.write(b"a")
            self.process.stdin.flush()
            self.assertEqual(self.lines_to("probe: hold=.*"), ["probe: hold=here"])
        self.check()
        self.quit()

    def a_timer_comes_once(self):
        self.pause(2 * TIMER_MS / 1000)
        for _ in range(2):  # the second one was begun by the check
            found = self.check_after_timer()
            self.assertEqual(found["timer"], "1")
            self.assertGreater(int(found["timer_late_us"]), -EARLY_US_MAX)
        self.quit()

    def test_a_timer_whose_time_comes_in_a_pause_comes_once(self):
        self.start(f"{TIMER_MS} timer=oneshot")
        self.a_timer_comes_once()

    def test_a_deadline_that_comes_in_a_pause_comes_once(self):
        self.start(f"{TIMER_MS} timer=deadline")
        if self.check()["timer"] != "none":  # not every processor has them
            self.a_timer_comes_once()

    def test_timers_that_cannot_be_are_refused(self):
        for words, text in {"0": "68719", "68720": "68719", "timer=soon": "timer= takes"}.items():
            with self.subTest(words):
                ended = run("run", "--kernel", PROBE, "--cmdline", f"probe=hold {words}")
                self.assertEqual(ended.status, 11, ended)
                self.assertIn(text, ended.output)


if __name__ == "__main__":
    unittest.main()
