#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an installation brings for supervisors, and that it fits together."""
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import VIREO  # noqa: E402


class Installation(unittest.TestCase):
    def test_the_files_name_the_program_that_is_installed(self):
        with tempfile.TemporaryDirectory() as root:
            subprocess.run(["meson", "install", "--no-rebuild", "--quiet", "--destdir", root], check=True,
                           cwd=pathlib.Path(VIREO).parent)
            found = {path.name: path for path in pathlib.Path(root).rglob("vireo*") if path.is_file()}
            self.assertLessEqual({"vireo", "vireo@.service", "vireo@.socket", "vireo.nomad.hcl"}, found.keys())
            program = f"/{found['vireo'].relative_to(root)}"
            for name, pattern in (("vireo@.service", r"^ExecStart=(\S+) run "),
                                  ("vireo.nomad.hcl", r'command = "(.*)"')):
                text = found[name].read_text(encoding="ascii")
                self.assertEqual(re.findall(pattern, text, re.MULTILINE), [program])
                self.assertNotRegex(text, "@[a-z]+@")
            # One of the directories in which systemd looks for units, where the prefix is a usual one.
            self.assertEqual(found["vireo@.service"].parent, found["vireo"].parents[1] / "lib/systemd/system")
            self.assertEqual(found["vireo@.socket"].parent, found["vireo@.service"].parent)


if __name__ == "__main__":
    unittest.main()
