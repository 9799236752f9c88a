#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles each header of the tree alone: a header includes what it needs. Where a source includes its
header before all else, the build has shown that already.

usage: check_headers.py ROOT [COMPILER]    exit 0: all compile; 1: the first errors of each that does not
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys


def comes_first(root, header):
    """Whether the source of the same name begins with it."""
    source = header.with_suffix(".cc")
    if not source.exists():
        return False
    first = re.search(r'^#include (.*)$', source.read_text(encoding="utf-8"), re.MULTILINE)
    return first is not None and first[1] == f'"{header.relative_to(root)}"'


def check(root, compiler, header):
    command = [compiler, "-std=c++23", "-fsyntax-only", "-D_GNU_SOURCE", "-DFMT_HEADER_ONLY", "-I",
               str(root), "-x", "c++", "-include", str(header), "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return header, done.returncode, "\n".join(done.stderr.splitlines()[:6])


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    compiler = sys.argv[2] if len(sys.argv) > 2 else "c++"
    headers = [header for top in ("src", "devices", "arch", "boot", "tools")
               for header in sorted((root / top).rglob("*.h"))]
    alone = [header for header in headers if not comes_first(root, header)]
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for header, status, errors in pool.map(lambda h: check(root, compiler, h), alone):
            if status != 0:
                failed += 1
                print(f"{header.relative_to(root)} does not compile alone:\n{errors}")
    print(f"{len(headers)} headers, {len(headers) - len(alone)} first in their sources, {failed} fail")
    return 1 if failed or not headers else 0


if __name__ == "__main__":
    sys.exit(main())
