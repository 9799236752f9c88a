#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The manual's pages: that they are well made, and that they and vireo say the same, in both
directions."""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from manual_pages import BUILD, MANUAL, items, part, plain, rendered, source  # noqa: E402
from vireo_process import run  # noqa: E402

PAGES = ("vireo.1", "vireo.toml.5", "vireo-json.7")
COMMANDS = ("run", "restore", "check", "ctl", "disk", "snapshot", "doctor")


def help_of(command):
    return run(command, "--help").output


def options_of(command):
    """Every long option that the command's help shows."""
    return set(re.findall(r"^  (?:-\w,)?(--[\w-]+)", help_of(command), re.MULTILINE))


class Pages(unittest.TestCase):
    def test_they_are_well_made(self):
        for page in PAGES:
            with self.subTest(page):
                lint = subprocess.run(["mandoc", "-Tlint", "-W", "warning", MANUAL / page], check=False,
                                      capture_output=True, text=True)
                self.assertEqual((lint.returncode, lint.stdout + lint.stderr), (0, ""))
                groff = subprocess.run(["groff", "-mdoc", "-Tutf8", "-ww", "-z", MANUAL / page],
                                       check=False, capture_output=True, text=True)
                self.assertEqual((groff.returncode, groff.stdout + groff.stderr), (0, ""))
                for row in source(page).splitlines():
                    self.assertFalse(row.startswith("@"), row)

    def test_they_are_installed_where_they_are_looked_for(self):
        listing = subprocess.run(["meson", "introspect", "--installed", BUILD], check=True,
                                 capture_output=True).stdout
        installed = {pathlib.Path(path).name: target for path, target in json.loads(listing).items()}
        for name, place in (("vireo.1", "share/man/man1"), ("vireo.toml.5", "share/man/man5"),
                            ("vireo-json.7", "share/man/man7"), ("vireo", "bin"),
                            ("vireo.bash", "share/bash-completion/completions"),
                            ("_vireo", "share/zsh/site-functions"),
                            ("vireo.fish", "share/fish/vendor_completions.d")):
            # bash looks for a file with the name of the command, or that and .bash.
            self.assertTrue(installed[name].endswith(f"/{place}/{name}"), installed[name])


class Commands(unittest.TestCase):
    def test_help_and_page_have_the_same_options(self):
        options = {command: options_of(command) - {"--help"} for command in COMMANDS}
        self.assertEqual(options["run"], options["check"])
        for command, usage in (("run", "[FILE.toml] [options]"), ("ctl", "SOCKET VERB [options]"),
                               ("doctor", "[--json]")):
            text = part("vireo.1", f"vireo {command} {usage}")
            self.assertEqual({"-" + name for name, _ in items(text, "Fl")}, options[command])
        self.assertGreater(len(options["run"]), 15)

    def test_every_command_is_told_in_help_and_page(self):
        overview = run("--help").output
        self.assertEqual(set(re.findall(r"^(?:usage:)? +vireo (\w+) ", overview, re.MULTILINE)),
                         set(COMMANDS))
        self.assertEqual(run("help").output, overview)
        synopsis = part("vireo.1", "SYNOPSIS")
        for command in COMMANDS:
            self.assertEqual(run("help", command).output, help_of(command))
            self.assertIn(f".Ic {command}\n", synopsis)
            self.assertIn("\nExamples:\n  vireo " + command, help_of(command))
        for wrong in (("help", "frob"), ("help", "run", "web.toml"), ("help", "\n")):
            ended = run(*wrong)
            self.assertEqual((ended.status, ended.output, len(ended.errors.splitlines())), (64, "", 1))

    def test_help_fits_a_terminal(self):
        for row in run("--help").output.splitlines():
            self.assertLessEqual(len(row), 100, row)

    def test_examples_and_statuses_are_those_of_the_help(self):
        text = rendered("vireo.1")
        for command in COMMANDS:
            shown = help_of(command)
            for example in re.search(r"\nExamples:\n((?:  .*\n)+)", shown)[1].splitlines():
                self.assertIn("\n" + " " * 11 + example.strip() + "\n", text)
            statuses = re.findall(r"^ +(\d+)  (.*)$", shown.split("\nExit status:\n")[1], re.MULTILINE)
            below = part("vireo.1", "EXIT STATUS").split(f".Ic {command} :")[1].split(".El")[0]
            self.assertEqual(re.findall(r"^\.It (\d+)\n(.*)$", plain(below), re.MULTILINE), statuses)

    def test_the_verbs_are_those_of_the_control_socket(self):
        told = part("vireo.1", "vireo ctl SOCKET VERB [options]")
        in_page = [name for name, _ in items(told, "Ic")]
        in_help = re.findall(r"^  (\S+)  ", help_of("ctl").split("Verbs:\n")[1].split("\n\n")[0],
                             re.MULTILINE)
        self.assertEqual(in_page, in_help)
        for verb in in_page:  # a verb that is none would be a wrong command line
            words = [verb, "data"] if verb in ("drive", "snapshot") else [verb]
            self.assertEqual(run("ctl", "/nonexistent", *words).status, 69)

    def test_examples_of_check_and_the_page_of_the_file_are_true(self):
        with tempfile.TemporaryDirectory() as directory:
            text = part("vireo.toml.5", "EXAMPLES")
            example = plain(re.search(r"^\.Bd .*?\n(.*?)^\.Ed", text, re.MULTILINE | re.DOTALL)[1])
            pathlib.Path(directory, "web.toml").write_text(example, encoding="ascii")
            ended = run("check", "web.toml", "--memory", "1G", cwd=directory)
            self.assertEqual((ended.status, ended.errors), (0, ""))
            self.assertEqual(tomllib.loads(ended.output)["machine"]["memory"], "1G")


def flat_keys(table, prefix=""):
    """The keys of a resolved configuration by their full names, of the last of several tables.
    Tables of free names are values."""
    for key, value in table.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for element in value:
                yield from flat_keys(element, f"{prefix}{key}.")
        elif isinstance(value, dict) and value and prefix + key not in ("labels", "limits.rlimits"):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# Every key with a value that it takes, other than its default where there is another.
EVERY_KEY = """
name = "web-1"
namespace = "shop"
labels = { revision = "3" }
[machine]
cpus = 2
topology = { sockets = 1, cores = 2, threads = 1 }
memory = "64M"
hugepages = "transparent"
mergeable = true
prefault = true
uuid = "8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2d"
cpu_features = ["-avx"]
transport = "mmio"
io_threads = 3
on_reboot = "restart"
track_dirty = false
[boot]
kernel = "k"
initramfs = "i"
cache = "off"
unpack = "off"
kaslr = "off"
cmdline = "c"
append = "a"
[serial]
mode = "file"
path = "s"
append = true
[process]
pid_file = "p"
timeline = "t"
profile = "f"
boot_timer = true
notify = "fd:5"
[log]
level = "debug"
format = "json"
file = "l"
[ready]
when = "mark:7"
timeout = "250ms"
[limits]
cpu_affinity = ["0", "0-1"]
core_scheduling = true
cgroup = "machine.slice/web-1"
memory_max = "1G"
cpu_quota = "150%"
cpu_weight = 50
pids_max = 100
io_max = "259:0 rbps=1048576"
rlimits = { nofile = "4096:4096" }
[rng]
rate_limit = { bandwidth = { size = "1M", refill = "1s", burst = "64K" }, ops = { size = 5, refill = "10ms", burst = 7 } }
[[disk]]
id = "root"
path = "root.img"
root = true
partuuid = "8c1f1c1e-01"
overlay = "o"
base_format = "overlay"
[[disk]]
id = "data"
path = "d"
root = false
readonly = true
direct = true
cache = "unsafe"
queues = "cpus"
rate_limit = { bandwidth = { size = "1M", refill = "1s", burst = "64K" }, ops = { size = 5, refill = "10ms", burst = 7 } }
[[volume]]
id = "v"
path = "v.img"
size = "1G"
[cloud_init]
user_data = "#cloud-config"
meta_data = "m"
network_config = "n"
[control]
path = "vm.sock"
[metrics]
path = "m"
[sandbox]
enabled = false
allow_paths = ["/srv/images"]
"""


TABLES = ("table", "tables")
# What each of several tables wants.
LEAST = {"disk": "[[disk]]\nid = 'a'\npath = 'a'\n",
         "volume": "[[volume]]\nid = 'b'\npath = 'b'\nsize = '1G'\n"}


def part_of_keys():
    text = source("vireo.toml.5")
    return text[text.index(".Sh KEYS"):text.index(".Sh EXAMPLES")]


class ConfigurationFile(unittest.TestCase):
    def told(self):
        """{key: (type, text below it)}"""
        found = re.findall(r"^\.It Ic (\S+) Pq (.*)\n((?:(?!\.It|\.El).*\n)*)", part_of_keys(), re.MULTILINE)
        return {plain(name): (plain(kind), plain(text)) for name, kind, text in found}

    def check(self, text):
        with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="ascii") as file:
            file.write(text)
            file.flush()
            ended = run("check", file.name)
        self.assertEqual((ended.status, ended.errors), (0, ""), text)
        return tomllib.loads(ended.output)

    def test_the_page_has_every_key_and_no_other(self):
        resolved = self.check(EVERY_KEY)
        self.assertEqual(dict(flat_keys(resolved)), dict(flat_keys(tomllib.loads(EVERY_KEY))))
        # Instead of the texts.
        seed = self.check("boot.kernel = 'k'\ncloud_init.seed = 's'\n")
        self.assertEqual(seed["cloud_init"], {"seed": "s"})
        # Tables have a place of their own on the page.
        self.assertEqual({key for key, _ in flat_keys(resolved)} | {"cloud_init.seed"},
                         {key for key, (kind, _) in self.told().items() if kind not in TABLES})

    def test_defaults_are_those_that_check_prints(self):
        defaults = dict(flat_keys(self.check('boot.kernel = "k"\n' + "".join(LEAST.values()))))
        needed = {"boot.kernel", "disk.id", "disk.path", "volume.id", "volume.path", "volume.size"}
        for key, (kind, text) in self.told().items():
            told = re.search(r"^Default:\n\.Li (.*) \.$", text, re.MULTILINE)
            if key in needed:
                self.assertIn("must be given", text)
            elif told is None:
                self.assertNotIn(key, defaults)
            else:
                self.assertEqual(tomllib.loads("it = " + told[1])["it"], defaults[key], key)
            # Each word that the page names is one that the key takes.
            for word in re.findall(r'"(\w+)"', kind):
                table, _, name = key.rpartition(".")
                extra = "serial.path = 's'\n" if (key, word) in (
                    ("serial.mode", "file"), ("serial.mode", "unix")) else ""
                if key == "disk.base_format":
                    extra, name = "", "overlay = 'o'\nbase_format"
                line = f"{name} = '{word}'" if table in LEAST else f"{table}.{name} = '{word}'"
                self.check(f"boot.kernel = 'k'\n{extra}{LEAST.get(table, '')}{line}\n")

    def test_options_are_those_that_set_the_key(self):
        values = {"--cpus": "2", "--memory": "64M", "--sandbox": "off", "--log-level": "warn",
                  "--log-format": "json", "--serial": "null", "--ready": "mark:1", "--notify": "fd:5", "--disk": "id=a,path=a",
                  "--volume": "id=a,path=a,size=1G", "--allow-path": "/x"}
        seen = set()
        before = dict(flat_keys(self.check('boot.kernel = "k"\n')))
        for key, (_, text) in self.told().items():
            for option in re.findall(r"^Option:\n\.Fl (\S+) \.$", text, re.MULTILINE):
                option = "-" + option
                seen.add(option)
                words = [option] if option in ("--boot-timer", "--rng") else [option, values.get(option, "x")]
                kernel = [] if option == "--kernel" else ["--kernel", "k"]
                ended = run("check", *kernel, *words)
                self.assertEqual(ended.status, 0, ended)
                after = dict(flat_keys(tomllib.loads(ended.output)))
                changed = {name for name in after if after[name] != before.get(name)}
                if key in LEAST:
                    self.assertLessEqual({f"{key}.id", f"{key}.path"}, changed)
                    changed = {key if name.startswith(key + ".") else name for name in changed}
                # More processors make a machine of more cores.
                self.assertEqual(changed - {"machine.topology.cores"}, {key}, option)
        self.assertEqual(seen, options_of("run") - {"--help"})

    def test_the_help_names_the_keys_that_only_the_file_has(self):
        named = re.search(r"Keys that only the file has: (.*?)\. The manual", help_of("run"), re.DOTALL)[1]
        named = {name.strip() for name in named.split(",")}
        only = {key for key, (_, text) in self.told().items() if "Option:" not in text and
                "--serial" not in text and key.partition(".")[0] not in LEAST}
        for key in only:
            self.assertTrue(any(key == name or key.startswith(name + ".") for name in named), key)
        for name in named:
            self.assertTrue(any(key == name or key.startswith(name + ".") for key in only), name)


if __name__ == "__main__":
    unittest.main()
