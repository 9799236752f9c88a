#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the corpus of small snapshots that every later vireo has to restore (tests/snapshot/corpus).

usage: make_corpus.py DIRECTORY NUMBER   where no files of its names are: what is there stays for good

A file is of a processor, so it is made and restored in the test host, whose processor is always the same.
With VIREO_BINARY and VIREO_PROBE set:

    tools/test-host run -- env VIREO_BINARY=$VIREO_BINARY VIREO_PROBE=$VIREO_PROBE \\
        python3 tests/snapshot/make_corpus.py /mnt/share/corpus 3
    cp -n "$(tools/test-host share)"/corpus/* tests/snapshot/corpus/

Once for each version of the format and of its sections, before the one after it comes. The names begin with
the format's version and the NUMBER of the file's kind in it.
"""
import lzma
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import vsnap_damage  # noqa: E402
from vireo_process import PROBE, VIREO, reap  # noqa: E402

# The same on each machine, as it stands in the files.
DIRECTORY = pathlib.Path("/tmp/vireo-corpus")
CONFIG = """
[machine]
{machine}
memory = "64M"
track_dirty = true
uuid = "00000000-0000-4000-8000-000000000001"
[boot]
kernel = "probe.elf"
cmdline = "probe=touch 1 {job} probe=serial-irq {job} {words} end=poweroff"
[rng]
[[disk]]
id = "data"
path = "data.img"
rate_limit.bandwidth = {{ size = "64M", refill = "1s" }}
"""
JOB = "probe=blk op=mix bs=4096 depth=4 count=32"
# The probe reads no tables: what describes devices over MMIO to it is the command line.
VARIANTS = {"mmio": {"machine": 'transport = "mmio"', "words": "acpi=off"},
            "pci": {"machine": 'transport = "pci"\ncpus = 2', "words": ""}}
# In a section x86-vcpu: the TSC's rate, behind KVM's structures, the TSC and when that was read.
TSC_KHZ = 320 + 144 + 392 + 128 + 1024 + 64 + 4 + 8 + 8


def control(*words):
    subprocess.run([VIREO, "ctl", "vm.sock", *words], cwd=DIRECTORY, check=True, stdout=subprocess.DEVNULL)


def say(process, letter):
    """To the guest, which says it again."""
    process.stdin.write(letter)
    process.stdin.flush()
    while process.stdout.read(1) != letter:
        pass


def make(settings):
    """Files of a guest that has worked with its disk and sleeps until it is told something: whole after one
    letter, what changed until after the second, and the first in its other forms."""
    (DIRECTORY / "vm.toml").write_text(CONFIG.format(job=JOB, **settings), encoding="ascii")
    process = subprocess.Popen([VIREO, "run", "vm.toml", "--control", "vm.sock"], cwd=DIRECTORY, bufsize=0,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        said = b""
        while not said.endswith(b"serial_irq=ready\r\n"):
            said += process.stdout.read(1) or sys.exit(f"it ended: {said}")
        if b"errors=0" not in said:
            sys.exit(f"the disk fails: {said}")
        say(process, b"a")
        control("snapshot", "full.vsnap", "--disks", "none")
        say(process, b"b")
        control("snapshot", "diff.vsnap", "--diff", "--then", "stop")
        process.wait()
    finally:
        reap(process)
    for form in ("compress", "split"):
        subprocess.run([VIREO, "snapshot", form, "full.vsnap", "--output", f"{form}.vsnap"], cwd=DIRECTORY, check=True)
    return [DIRECTORY / f"{name}.vsnap" for name in ("full", "diff", "compress", "split")]


def packed(path):
    """Without the rate of the TSC, which is that of the machine below: 0 says that nobody knows it."""
    file = vsnap_damage.File(path)
    for tag, _, _, content in file.sections:
        if tag == b"x86-vcpu":
            content[TSC_KHZ:TSC_KHZ + 4] = bytes(4)
    version = int.from_bytes(file.header[8:12], "little")
    return version, lzma.compress(file.bytes(), preset=9)


def main(target, number):
    target.mkdir(parents=True, exist_ok=True)
    for variant, settings in VARIANTS.items():
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        DIRECTORY.mkdir()
        shutil.copy(PROBE, DIRECTORY / "probe.elf")
        (DIRECTORY / "data.img").write_bytes(bytes(1 << 20))
        for file in make(settings):
            version, content = packed(file)
            contents = {f"{file.name}.xz": content}
            memory = file.with_name(file.name + ".mem")
            if memory.exists():
                contents[f"{memory.name}.xz"] = lzma.compress(memory.read_bytes(), preset=9)
            for name, content in contents.items():
                path = target / f"v{version}.{number}-{variant}-{name}"
                with open(path, "xb") as made:
                    made.write(content)
                print(path, len(content))
    shutil.rmtree(DIRECTORY)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
