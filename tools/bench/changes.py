# SPDX-License-Identifier: Apache-2.0
"""Changes of a configuration that may make its boot faster, by name: what each is, and how it is made.

    WORD                 a word added to the kernel's command line
    without=WORD         a word of the command line left out
    without=KIND/ID      a device left out: disk, net, fs, volume (by id or tag), vsock, balloon, rng
    TABLE.KEY=VALUE      a key of the configuration: machine, boot, serial, process
"""
import copy
import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Change:
    name: str
    why: str = ""
    trade: str = ""  # what is given up for it; empty: nothing that a user would miss


class NotApplicable(Exception):
    """The change means nothing for this configuration; the text says why."""


@dataclasses.dataclass
class Base:
    """The boot that changes are tried on."""
    config: dict  # resolved
    line: str | None  # the command line that its kernel says it got; None: it says nothing
    linux: bool
    packed: bool  # the kernel is a bzImage
    initcalls: list  # [{"name", "seconds"}]


# Words that are looked for in a line, to leave them out, or else to add them.
WORDS = (
    Change("quiet", "no kernel messages on the console"),
    Change("cryptomgr.notests", "no self-tests of ciphers"),
    Change("noreplace-smp", "lock prefixes are not written over"),
    Change("8250.nr_uarts=1", "no search for absent serial ports"),
    Change("pci=off", "no search for PCI devices", "no PCI devices"),
    Change("tsc=reliable", "no watch over the TSC", "a TSC that goes wrong is not noticed"),
    Change("no_timer_check", "no check that the timer's interrupt works"),
    Change("nowatchdog", "no watch for CPUs that hang", "hangs of the guest's kernel are not reported"),
    Change("rcupdate.rcu_expedited=1", "no waiting for RCU's grace periods",
           "interrupts between CPUs as long as the guest runs"),
    Change("random.trust_cpu=on", "the CPU's random numbers count as entropy", "security: trusts the CPU's"),
    Change("mitigations=off", "no measures against leaks through the CPU", "security: guest programs unprotected"),
    Change("init_on_alloc=0", "memory is not zeroed when it is handed out", "security: old data may leak"),
    Change("nokaslr", "the kernel lies where it was linked", "security: no KASLR"),
    Change("audit=0", "no audit subsystem", "security: no audit records"),
    Change("i8042.noaux", "no search for a mouse"),
    Change("i8042.nomux", "no search for a multiplexer of mice"),
    Change("i8042.nokbd", "no keyboard", "no Ctrl-Alt-Del"),
    Change("i8042.dumbkbd", "the keyboard is not written to"),
    Change("edd=off", "no BIOS disk tables are read"),
    Change("dis_ucode_ldr", "no search for microcode, which a guest cannot load"),
    Change("pnpacpi=off", "no search for ACPI's plug-and-play devices", "no such devices"),
    Change("acpi=off", "no ACPI", "no power button, no power-off, one CPU, no devices by ACPI"),
    Change("clocksource=kvm-clock", "no choice of a clock"),
    Change("noresume", "no search for a hibernated system", "a hibernated guest starts anew"),
    Change("raid=noautodetect", "no search for RAID", "no old RAID arrays"),
    Change("debugfs=off", "no debugfs", "no debugging of the guest's kernel"),
    Change("cgroup_disable=memory", "no accounting of memory", "no memory limits in the guest"),
    Change("loglevel=0", "no kernel messages at all on the console", "the console shows no panic's reason"),
    Change("reboot=k,force", "CPUs are not stopped before a reset", "they run on until it comes"),
)
# These are never added: each only means something where somebody chose it.
ONLY_LEFT_OUT = (
    Change("console=ttyS0", "no console", "nothing is shown"),
    Change("reboot=k", "reset in the kernel's usual order"),
    Change("panic=-1", "", "a guest that panics stands still"),
)
DEVICE_LISTS = {"disk": "id", "volume": "id", "net": "id", "fs": "tag"}
DEVICE_TABLES = ("vsock", "balloon", "rng")
INITCALLS_TRIED = 6
# Without these hardly any guest gets as far as its own programs, or shows it.
NEEDED_INITCALLS = ("populate_rootfs", "chr_dev_init", "acpi_init", "inet_init", "serial8250_init",
                    "clocksource_done_booting", "init_hw_perf_events", "pty_init", "tty_init")
CONFIG_NAME = re.compile(r"(machine|boot|serial|process)\.([a-z_]+)=(.*)")


def split(line):
    """The words of a command line; blanks within quotes part none."""
    return re.findall(r'(?:[^\s"]|"[^"]*"?)+', line)


def key_of(word):
    return word.partition("=")[0]


def find(words, key):
    return next((word for word in words if key_of(word) == key), None)


def typed(text, like):
    """`text` as the type that the configuration has at its place."""
    if isinstance(like, bool):
        return text == "true"
    return int(text) if isinstance(like, int) else text


def set_key(config, table, key, text):
    section = config.setdefault(table, {})
    if key in section and section[key] == typed(text, section[key]):
        raise NotApplicable("it is so already")
    if table == "serial":
        section.clear()  # a path belongs to the mode that it was given for
    if (table, key) == ("machine", "cpus"):
        section.pop("topology", None)
    section[key] = typed(text, section[key]) if key in section else text


def without_device(config, kind, name):
    if kind in DEVICE_TABLES and kind in config:
        del config[kind]
        return
    devices = config.get(kind, [])
    left = [device for device in devices if device.get(DEVICE_LISTS.get(kind)) != name]
    if len(left) == len(devices):
        raise NotApplicable(f"there is no {kind} {name}")
    config[kind] = left


def own_words(base):
    """The words before those that are added: the user's own line, or vireo's default; None if unknown."""
    boot = base.config["boot"]
    if "cmdline" in boot:
        return split(boot["cmdline"])
    seen, added = split(base.line or ""), split(boot.get("append", ""))
    # What is added stands last; a line that the kernel did not show in full does not end so.
    known = base.line is not None and seen[len(seen) - len(added):] == added
    return seen[:len(seen) - len(added)] if known else None


def without_word(base, config, word):
    """The line without `word`, whoever put it there: vireo's default becomes a line of one's own."""
    boot = config["boot"]
    own = split(boot["cmdline"]) if "cmdline" in boot else own_words(base) or []
    added = split(boot.get("append", ""))
    if word not in own and word not in added:
        raise NotApplicable(f"the command line has no {word}")
    boot["append"] = " ".join(other for other in added if other != word)
    if word in own:
        boot["cmdline"] = " ".join(other for other in own if other != word)


def with_word(config, word):
    boot = config["boot"]
    words = split(boot.get("append", ""))
    blacklist = find(words, "initcall_blacklist")
    if key_of(word) == "initcall_blacklist" and blacklist:
        # The kernel takes one list.
        words[words.index(blacklist)] = f"{blacklist},{word.partition('=')[2]}"
    else:
        words.append(word)
    boot["append"] = " ".join(words)


def apply(base, names):
    """The configuration of `base` with all changes that `names` name."""
    config = copy.deepcopy(base.config)
    for name in names:
        setting = CONFIG_NAME.fullmatch(name)
        if setting:
            set_key(config, *setting.groups())
        elif name.startswith("without="):
            what = name.removeprefix("without=")
            kind, _, device = what.partition("/")
            if kind in DEVICE_LISTS or kind in DEVICE_TABLES:
                without_device(config, kind, device)
            else:
                without_word(base, config, what)
        else:
            with_word(config, name)
    return config


def slot(name):
    """What a change changes: of two changes with one slot only one can be made."""
    setting = CONFIG_NAME.fullmatch(name)
    if setting:
        return f"{setting[1]}.{setting[2]}"
    # Each function that is left out is a change of its own.
    return name if name.startswith(("without=", "initcall_blacklist=")) else key_of(name)


def word_changes(base):
    words = split(base.line)
    offered = []
    for change in WORDS + ONLY_LEFT_OUT:
        present = find(words, key_of(change.name))
        if present == change.name or present and change in ONLY_LEFT_OUT:
            trade = change.trade if change in ONLY_LEFT_OUT else ""
            offered.append(Change(f"without={present}", f"what {present} gives", trade))
        elif present is None and change not in ONLY_LEFT_OUT:
            offered.append(change)
    one_cpu = base.config.get("machine", {}).get("cpus", 1) == 1
    return [change for change in offered if change.name != "acpi=off" or one_cpu]


def initcall_changes(base):
    slow = sorted((call for call in base.initcalls if call["name"] not in NEEDED_INITCALLS),
                  key=lambda call: -call["seconds"])
    names = dict.fromkeys(call["name"] for call in slow)
    return [Change(f"initcall_blacklist={name}", "one of the slowest init functions",
                   "only where nobody needs it") for name in list(names)[:INITCALLS_TRIED]]


def config_changes(base):
    machine, boot = base.config.get("machine", {}), base.config.get("boot", {})
    if machine.get("hugepages", "off") == "off":
        yield Change("machine.hugepages=transparent", "fewer page faults, larger ones",
                     "memory that the guest touches once is taken 2 MiB at a time")
        yield Change("machine.hugepages=2M", "fewer page faults, no zeroing", "huge pages set aside on the host")
    else:
        yield Change("machine.hugepages=off", "small pages")
    if machine.get("mergeable"):
        yield Change("machine.mergeable=false", "no merging of equal pages", "more memory for many guests")
    yield Change(f"machine.prefault={'false' if machine.get('prefault') else 'true'}",
                 "memory as the guest touches it" if machine.get("prefault") else "no page faults in the guest",
                 "" if machine.get("prefault") else "all of the guest's memory is taken at once")
    if machine.get("cpus", 1) > 1:
        yield Change("machine.cpus=1", "no other CPUs to bring up", "one CPU")
    if boot.get("cache", "auto") != "off":
        yield Change("boot.cache=off", "what the cache of unpacked kernels gives")
    if base.packed and boot.get("unpack", "auto") != "off":
        yield Change("boot.unpack=off", "what unpacking on the host gives")
    if base.linux and boot.get("kaslr", "auto") != "off":
        yield Change("boot.kaslr=off", "no relocation", "security: no KASLR")
    if base.config.get("serial", {}).get("mode", "stdio") != "null":
        yield Change("serial.mode=null", "what the console's reader costs", "nothing is shown")
    if base.config.get("process", {}).get("boot_timer"):
        yield Change("process.boot_timer=false", "no boot timer")


def device_changes(base):
    for kind, key in DEVICE_LISTS.items():
        for device in base.config.get(kind, []):
            if key in device and not device.get("root"):
                yield Change(f"without={kind}/{device[key]}", "", f"no {kind} {device[key]}")
    for kind in DEVICE_TABLES:
        if kind in base.config:
            yield Change(f"without={kind}/", "", f"no {kind}")


def candidates(base):
    """What is worth a try for this boot, what stands to reason first."""
    changes = [*config_changes(base), *device_changes(base)]
    if base.linux and base.line is not None:
        changes += [*word_changes(base), *initcall_changes(base)]
    return changes


def named(base, names):
    """The changes that a user names, with what is known of them."""
    known = {change.name: change for change in (*WORDS, *candidates(base))}
    return [known.get(name, Change(name)) for name in dict.fromkeys(names)]
