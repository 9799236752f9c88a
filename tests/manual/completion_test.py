#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Completion of vireo in bash, zsh and fish themselves."""
import os
import pathlib
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from manual_pages import MANUAL  # noqa: E402
from vireo_process import run  # noqa: E402

COMMANDS = {"run", "restore", "check", "ctl", "disk", "snapshot", "doctor"}
PATHS = ("--kernel", "--initramfs", "--control", "--metrics", "--pid-file", "--timeline", "--profile",
         "--log-file", "--allow-path")
TEXTS = ("--name", "--cmdline", "--append", "--cpus", "--memory", "--disk", "--volume")
WORDS = {"--sandbox": {"on", "off"}, "--log-format": {"text", "json"}, "--ready": {"started", "serial:", "mark:"},
         "--log-level": {"trace", "debug", "info", "warn", "error", "off"}, "--notify": {"fd:"},
         "--serial": {"stdio", "pty", "null", "file,path=", "unix,path="}}


def options_of(command):
    return set(re.findall(r"^  (?:-\w,)?(--[\w-]+)", run(command, "--help").output, re.MULTILINE))


def verbs():
    below = run("ctl", "--help").output.split("Verbs:\n")[1].split("\n\n")[0]
    return set(re.findall(r"^  (\S+)  ", below, re.MULTILINE))


class Terminal:
    """A shell that its user types into."""

    def __init__(self, command, environment, directory):
        self.said = b""
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            os.execvpe(command[0], command, dict(environment, TERM="xterm", HOME=str(directory),
                                               PATH=os.environ["PATH"]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self.file)

    def wait_for(self, pattern, seconds=60):
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said, re.DOTALL)):
            if time.monotonic() > deadline or not select.select([self.file], [], [], seconds)[0]:
                raise AssertionError(f"no {pattern} in {self.said}")
            self.said += os.read(self.file, 4096)
        self.said = self.said[found.end():]
        return found

    def type(self, text):
        os.write(self.file, text.encode())


class Shell:
    """What is offered in each of the shells. `offers(line)` is what the shell has for the last word."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        for name in ("vmlinuz", "web.toml", "web-1.sock"):
            (self.directory / name).touch()
        (self.directory / "images").mkdir()

    def test_commands(self):
        self.assertEqual({word for word in self.offers("vireo ") if word[0] != "-"}, COMMANDS | {"help"})
        self.assertEqual(self.offers("vireo ru"), {"run"})
        self.assertEqual(self.offers("vireo help c"), {"check", "ctl"})
        self.assertEqual(self.offers("vireo fly "), set())
        self.assertLessEqual({"--help", "--version"}, self.offers("vireo --"))

    def test_options_after_each_command(self):
        for command in COMMANDS:
            with self.subTest(command):
                self.assertEqual(self.offers(f"vireo {command} --"), options_of(command))
        self.assertEqual(self.offers("vireo run web.toml --log-f"), {"--log-format", "--log-file"})

    def test_values(self):
        known = {"--boot-timer", "--rng", "--help", *PATHS, *TEXTS, *WORDS}
        self.assertEqual(known, options_of("run"))
        for command in ("run", "check"):
            for option, words in WORDS.items():
                self.assertEqual(self.offers(f"vireo {command} {option} "), words, option)
            for option in PATHS:
                self.assertEqual(self.offers(f"vireo {command} {option} vm"), {"vmlinuz"}, option)
            for option in TEXTS:
                self.assertEqual(self.offers(f"vireo {command} {option} v"), set(), option)
        self.assertEqual({word.rsplit("=")[-1] for word in self.offers("vireo run --kernel=vm")}, {"vmlinuz"})

    def test_verbs_after_the_socket(self):
        self.assertEqual(self.offers("vireo ctl web-1"), {"web-1.sock"})
        for line in ("vireo ctl vm.sock ", "vireo ctl --json vm.sock ", "vireo ctl --timeout 5s vm.sock "):
            self.assertEqual(self.offers(line), verbs(), line)
        self.assertEqual(self.offers("vireo ctl vm.sock st"), {"status", "stats", "stop"})
        self.assertEqual(self.offers("vireo ctl vm.sock stop s"), set())

    def test_the_file(self):
        for line in ("vireo run we", "vireo check --boot-timer --name a we"):
            self.assertIn("web.toml", self.offers(line), line)
        self.assertEqual({word.rstrip("/") for word in self.offers("vireo run im")}, {"images"})
        self.assertNotIn("web.toml", self.offers("vireo run a.toml we"))


class Typed:
    """What stands in the command line when Tab was pressed, and more was typed."""

    def test_what_is_typed(self):
        with self.terminal() as shell:
            shell.wait_for(b"the shell is ready")
            for before, after, line in (
                    ("vireo ru", "", "<run>"), ("vireo run --ready seri", "up", "<run><--ready><serial:up>"),
                    ("vireo run --kernel=vm", "x", "<run><--kernel=vmlinuz><x>"),
                    ("vireo run --serial fi", "log", "<run><--serial><file,path=log>"),
                    ("vireo run we", "x", "<run><web.toml><x>"),
                    ("vireo ctl web-1", "st", "<ctl><web-1.sock><st>")):
                shell.type(f"{before}\t{after}\r")
                self.assertEqual(shell.wait_for(rb"it is (<[^\r]*>)\r")[1].decode(), line)


class Bash(Shell, Typed, unittest.TestCase):
    def offers(self, line):
        words = [piece for word in line.split(" ")[:-1] for piece in re.findall("[:=]|[^:=]+", word)]
        words += re.findall("[:=]|[^:=]+", line.split(" ")[-1]) or [""]
        script = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vireo; '
                  'printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run(["bash", "--norc", "-uc", script, "bash", MANUAL / "vireo.bash", *words],
                              cwd=self.directory, check=True, capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        return set(done.stdout.split())

    def terminal(self):
        setup = self.directory / ".bashrc"
        setup.write_text(f"source {MANUAL}/vireo.bash\nvireo() {{ printf 'it is '; printf '<%s>' \"$@\"; echo; }}\n"
                         "PS1=\necho the shell is ready\n", encoding="ascii")
        return Terminal(["bash", "--noprofile", "--rcfile", str(setup), "-i"], {}, self.directory)


# Tells what compadd is given that fits, as zsh would show it.
ZSH_HITS = """
compadd() {
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]]; then
    builtin compadd "$@"
    return
  fi
  local -a hits
  builtin compadd -A hits "$@"
  (( $#hits )) && print -rl -- "offered "${^hits}
  builtin compadd "$@"
}
finish() { print; print all is told }
comppostfuncs=(finish)
"""


class Zsh(Shell, Typed, unittest.TestCase):
    def terminal(self, more=""):
        setup = self.directory / ".zshrc"
        setup.write_text(f"fpath=({MANUAL} $fpath)\nautoload -Uz compinit\ncompinit -u -D\n{more}\n"
                         "vireo() { print -n 'it is '; printf '<%s>' \"$@\"; print }\n"
                         "PROMPT=\nunsetopt prompt_cr prompt_sp\nprint the shell is ready\n", encoding="ascii")
        return Terminal(["zsh", "-i", "-d"], {"ZDOTDIR": str(self.directory)}, self.directory)

    def offers(self, line):
        with self.terminal(ZSH_HITS) as shell:
            shell.wait_for(b"the shell is ready")
            shell.type(line + "\t")
            said = shell.wait_for(b"all is told").string
        # Options that take a value are offered with the = that may stand behind them.
        return {re.sub(r"^(--.*)=$", r"\1", hit) for hit
                in re.findall(r"offered (\S+)", said.decode())}


class Fish(Shell, unittest.TestCase):
    def offers(self, line):
        done = subprocess.run(["fish", "--no-config", "-c", f"source {MANUAL}/vireo.fish; complete -C '{line}'"],
                              cwd=self.directory, check=True, capture_output=True, text=True,
                              env=dict(os.environ, HOME=str(self.directory)))
        self.assertEqual(done.stderr, "")
        return {row.split("\t")[0] for row in done.stdout.splitlines()}


if __name__ == "__main__":
    unittest.main()
