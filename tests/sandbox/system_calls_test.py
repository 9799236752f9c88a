#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each system call that the sandbox allows is one that vireo makes: the suites run once more under strace,
and what no thread of a kind was seen to do is to leave src/seccomp/rules.h. That each call which is made
is allowed shows in every suite, for the filters end the process."""
import collections
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import VIREO  # noqa: E402

TESTS = pathlib.Path(__file__).resolve().parents[1]
SUITES = (("program/control_test.py",), ("program/supervise_test.py",),
          ("program/drive_test.py", "Drive.test_a_disk_grows", "Drive.test_what_is_left_is_whole_and_free_and_what_comes_is_locked",
           "Allowed.test_a_file_by_its_path"),
          ("guest/probe_guest_test.py",),
          ("guest/probe_snapshot_test.py", "Snapshots.test_the_guest_goes_on_after_its_snapshot",
           "Snapshots.test_a_disk_that_moved_on_is_refused"),
          ("guest/probe_standby_test.py", "Standby.test_a_reboot"))
MAIN, VCPU, START = 1, 2, 4
LINE = re.compile(r"(\d+) +(\w+)\((.*)")


def seen_in(log):
    """(kind of thread, call, arguments in numbers) of one process once it is in its sandbox."""
    main = None
    filters = collections.Counter()
    for line in log.read_text(encoding="ascii", errors="replace").splitlines():
        match = LINE.match(line)
        if not match:
            continue
        thread, call, rest = match.groups()
        main = main or thread
        if call == "seccomp":
            filters[thread] += 1
            if thread == main and filters[main] == 1:
                continue
        if not filters[main]:
            continue
        # The kind's own filter is in force after the call that installs it.
        own = filters[thread] - (call == "seccomp")
        narrowed = own > 1 if thread == main else own > 0
        kind = START if not narrowed else MAIN if thread == main else VCPU
        arguments = []
        for text in rest.split(", ")[:3]:
            number = re.match(r"0x[0-9a-f]+|-?\d+", text)
            arguments.append(int(number.group(), 0) if number else None)
        yield kind, call, tuple(arguments)


class SystemCalls(unittest.TestCase):
    def seen(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            (directory / "logs").mkdir()
            wrapper = directory / "vireo"
            # The tracer stands aside: vireo stays the child of the test, with its own process id.
            wrapper.write_text("#!/bin/sh\n"
                               f'exec strace -DDD -f -qq -X raw -o {directory}/logs/$$ "{VIREO}" "$@"\n',
                               encoding="ascii")
            wrapper.chmod(0o755)

            def suite(words):
                return subprocess.run([sys.executable, TESTS / words[0], *words[1:]], check=False, capture_output=True, timeout=500,
                                      env=dict(os.environ, VIREO_BINARY=str(wrapper)))
            with concurrent.futures.ThreadPoolExecutor() as pool:
                for done in pool.map(suite, SUITES):
                    self.assertEqual(done.returncode, 0, done.stderr[:3000].decode(errors="replace"))
            return {call for log in (directory / "logs").iterdir() for call in seen_in(log)}

    def test_each_that_is_allowed_is_used(self):
        listed = subprocess.run([pathlib.Path(VIREO).parent / "src/seccomp/make_filters", "list"], check=True, capture_output=True,
                                text=True).stdout
        seen = self.seen()
        self.assertGreater(len(seen), 50)
        unused = []
        for rule in listed.splitlines():
            threads, rare, call, *comparison = rule.split()
            for kind, name in ((MAIN, "main"), (VCPU, "vCPU"), (START, "start")):
                def matches(one, kind=kind, call=call, comparison=comparison):
                    if one[:2] != (kind, call):
                        return False
                    return not comparison or one[2][int(comparison[0])] == int(comparison[1])
                if int(threads) & kind and rare == "0" and not any(map(matches, seen)):
                    unused.append(f"{name}: {call} {' '.join(comparison)}")
        self.assertEqual(unused, [])


if __name__ == "__main__":
    unittest.main()
