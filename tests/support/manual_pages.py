# SPDX-License-Identifier: Apache-2.0
"""Reads the manual's pages, which are built beside vireo, for tests."""
import pathlib
import re
import subprocess

from vireo_process import VIREO

BUILD = pathlib.Path(VIREO).parent
MANUAL = BUILD / "src/manual"
ESCAPES = {r"\-": "-", r"\(aq": "'", r"\(dq": '"', r"\(ga": "`", r"\(ha": "^", r"\(ti": "~", r"\&": "",
           r"\e": "\\"}


def source(page):
    return (MANUAL / page).read_text(encoding="ascii")


def plain(text):
    """What roff makes of a text of the pages."""
    return re.sub(r"\\(\(..|.)", lambda found: ESCAPES[found[0]], text)


def rendered(page):
    """The page as its readers have it, without bold and underline."""
    text = subprocess.run(["mandoc", "-Tascii", "-O", "width=200", MANUAL / page], check=True,
                          capture_output=True, text=True).stdout
    return re.sub(".\b", "", text)


def items(text, macro):
    """The head of each ".It MACRO" of a part of a page, as (name, rest)."""
    return [(plain(name), plain(rest).strip()) for name, rest
            in re.findall(rf"^\.It {macro} (\S+)(.*)$", text, re.MULTILINE)]


def part(page, heading):
    """What stands below a heading, up to the next."""
    found = re.search(rf"^\.S[sh] {re.escape(heading)}\n(.*?)(?=^\.S[sh] |\Z)", source(page),
                      re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no {heading}"
    return found[1]
