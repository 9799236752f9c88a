#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Snapshots that each version of the format has left behind (tests/snapshot/corpus): they are restored for
good. They are of the test host's processor, and are restored there; see tests/snapshot/make_corpus.py.
"""
import json
import lzma
import pathlib
import re
import sys
import unittest

SNAPSHOTS = pathlib.Path(__file__).resolve().parents[1] / "snapshot"
sys.path.insert(0, str(SNAPSHOTS.parent / "support"))
from probe_hold import HoldTest  # noqa: E402
from vireo_process import PROBE, run, start  # noqa: E402

CORPUS = sorted((SNAPSHOTS / "corpus").glob("*.vsnap.xz"))


class Corpus(HoldTest):
    def setUp(self):
        super().setUp()
        self.disk = self.directory / "data.img"
        self.disk.write_bytes(bytes(1 << 20))

    def unpacked(self, path):
        """Beside its memory, where that has a file, by the name that is in it."""
        file = self.directory / path.stem
        file.write_bytes(lzma.decompress(path.read_bytes()))
        memory = path.with_name(f"{path.stem}.mem.xz")
        if memory.exists():
            (self.directory / "split.vsnap.mem").write_bytes(lzma.decompress(memory.read_bytes()))
        return file

    def done(self, *words, **options):
        ended = run(*words, **options)
        self.assertEqual(ended.status, 0, ended)
        return ended.output.replace("\r", "")

    def versions(self, file):
        shown = json.loads(self.done("snapshot", "info", file, "--json"))
        return shown["format_version"], {section["tag"]: section["version"] for section in shown["sections"]}

    def goes_on(self, file, letters, *options):
        """The guest has had so many letters; it hears the last one and works with its disk again."""
        said = self.done("restore", file, "--disk", f"id=data,path={self.disk}", *options, stdin=b"q")
        self.assertIn(f"probe: serial_irq_received={letters + 1}\n", said)
        self.assertRegex(said, "probe: blk=mix .* requests=32 .* errors=0 ")

    def test_each_file(self):
        for path in CORPUS:
            with self.subTest(path.name):
                version = int(re.match(r"v(\d+)\.", path.name)[1])
                file = self.unpacked(path)
                self.done("snapshot", "verify", file)
                shown = json.loads(self.done("snapshot", "info", file, "--json"))
                self.assertEqual((shown["format_version"], shown["memory_bytes"]), (version, 64 << 20))
                self.assertEqual((shown["compressed"], shown["memory_file"] is not None),
                                 ("-compress." in path.name, "-split." in path.name))
                letters = 1
                if shown["kind"] == "diff":
                    full = self.unpacked(path.with_name(path.name.replace("-diff", "-full")))
                    diff, file = file, self.directory / "merged.vsnap"
                    self.done("snapshot", "merge", full, diff, "--output", file)
                    letters = 2
                for memory in ("fill" if shown["compressed"] else "map", "copy"):
                    self.goes_on(file, letters, "--memory", memory)

    def test_it_has_each_version(self):
        """What this vireo writes has been kept: the format, and each section."""
        config = self.directory / "vm.toml"
        for transport in ("mmio", "pci"):
            here = self.directory / transport
            here.mkdir()
            now = here / "full.vsnap"
            config.write_text(f"""
                [machine]
                transport = "{transport}"
                memory = "64M"
                [rng]
                [[disk]]
                id = "data"
                path = "{self.disk}"
                """, encoding="ascii")
            self.process = start("run", config, "--kernel", PROBE, "--cmdline", "probe=serial-irq", "--control",
                                 self.socket)
            self.lines_to("probe: serial_irq=ready")
            self.control("snapshot", now, "--then", "stop")
            self.process.communicate()
            for form in ("full", "compress", "split"):
                file = here / f"{form}.vsnap"
                if form != "full":
                    self.done("snapshot", form, now, "--output", file)
                kept = [self.versions(self.unpacked(path)) for path in CORPUS if path.match(f"*-{transport}-{form}.*")]
                self.assertIn(self.versions(file), kept, form)


if __name__ == "__main__":
    unittest.main()
