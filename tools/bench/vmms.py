# SPDX-License-Identifier: Apache-2.0
"""The command lines of VMMs whose guest has disks: one contender for each transport and engine that a VMM has."""
import dataclasses
import json

from measure import Contender

TRANSPORTS = ("mmio", "pci")
# The faster one first.
QEMU_ENGINES = ("io_uring", "threads")
FIRECRACKER_ENGINES = ("Sync", "Async")
# Where QEMU's microvm has its PCI; it has no MCFG, and no firmware that gives BARs their addresses.
QEMU_PCI = "ecam=0xe0000000 pci_window=0xc0000000"


@dataclasses.dataclass(frozen=True)
class Disk:
    name: str
    path: str
    readonly: bool = False


@dataclasses.dataclass(frozen=True)
class Guest:
    kernel: str
    # Of its command line. What only a guest without PCI wants is left out of it where there is PCI, and how a
    # reboot is asked for is changed to what the VMM has.
    words: str
    memory: int  # MiB
    disks: tuple
    cpus: int = 1
    initramfs: str | None = None
    # One that reads no tables of ACPI is told of its devices by words.
    acpi: bool = True

    def words_for(self, transport):
        return self.words.replace(" pci=off", "") if transport == "pci" else self.words


def contenders(arguments, guest, work, all_engines=True):
    """All VMMs that are given, in all their ways to serve this guest's disks, or with their fastest engine."""
    engines = slice(None) if all_engines else slice(1)
    for transport in TRANSPORTS:
        # What is asked of disks has a thread of its own, as with QEMU; a boot has not.
        yield vireo(arguments, transport, guest, work, io_threads=1 if all_engines else 0)
    if arguments.qemu:
        for engine in QEMU_ENGINES[engines]:
            for transport in TRANSPORTS:
                yield qemu(arguments, engine, transport, guest)
    if arguments.firecracker:
        for engine in FIRECRACKER_ENGINES[engines]:
            for transport in TRANSPORTS:
                yield firecracker(arguments, engine, transport, guest, work)
    if arguments.cloud_hypervisor:
        yield cloud_hypervisor(arguments, guest)


def vireo(arguments, transport, guest, work, io_threads):
    words = guest.words_for(transport)
    if transport == "mmio" and not guest.acpi:
        words = f"{words} acpi=off"
    lines = ["[machine]", f"cpus = {guest.cpus}", f'memory = "{guest.memory}M"', f'transport = "{transport}"',
             f"io_threads = {io_threads}",
             "[boot]", f"kernel = {json.dumps(str(guest.kernel))}", f"cmdline = {json.dumps(words)}"]
    if guest.initramfs:
        lines.append(f"initramfs = {json.dumps(str(guest.initramfs))}")
    for disk in guest.disks:
        lines += ["[[disk]]", f'id = "{disk.name}"', f"path = {json.dumps(str(disk.path))}"]
        if disk.readonly:
            lines.append("readonly = true")
    config = work / f"vireo-{transport}.toml"
    config.write_text("\n".join([*lines, ""]), encoding="utf-8")
    # 10: the guest asked for a reboot.
    return Contender(f"vireo {transport}", [arguments.vireo, "run", str(config)], good=(0, 10))


def qemu(arguments, engine, transport, guest):
    device = {"mmio": "virtio-blk-device", "pci": "virtio-blk-pci"}[transport]
    machine = f"microvm,pit=off,pic=off,rtc=off{',pcie=on' if transport == 'pci' else ''}" \
              f"{'' if guest.acpi or transport == 'pci' else ',acpi=off'},isa-serial=on"
    words = guest.words_for(transport).replace("reboot=k", "reboot=t")
    if transport == "pci" and not guest.acpi:
        words = f"{words} {QEMU_PCI}"
    disks = []
    for disk in guest.disks:
        disks += ["-drive", f"if=none,id={disk.name},file={disk.path},format=raw,aio={engine}"
                            f"{',readonly=on' if disk.readonly else ''}",
                  "-device", f"{device},drive={disk.name},iothread=io"]
    return Contender(f"qemu {engine} {transport}", [
        arguments.qemu, "-object", "iothread,id=io", "-M", machine,
        *(["-global", "virtio-mmio.force-legacy=false"] if transport == "mmio" else []), *disks, "-accel", "kvm",
        # The probe is for each KVM, and not each has what QEMU makes of `host`.
        *(["-cpu", "host"] if guest.acpi else []), "-smp", str(guest.cpus), "-m", str(guest.memory), "-nodefaults",
        "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(guest.kernel),
        *(["-initrd", str(guest.initramfs)] if guest.initramfs else []), "-append", words])


def firecracker(arguments, engine, transport, guest, work):
    boot = {"kernel_image_path": str(guest.kernel), "boot_args": guest.words_for(transport)}
    if guest.initramfs:
        boot["initrd_path"] = str(guest.initramfs)
    config = work / f"firecracker-{engine}-{transport}.json"
    config.write_text(json.dumps({
        "boot-source": boot,
        "drives": [{"drive_id": disk.name, "path_on_host": str(disk.path), "is_root_device": False,
                    "is_read_only": disk.readonly, "io_engine": engine} for disk in guest.disks],
        "machine-config": {"vcpu_count": guest.cpus, "mem_size_mib": guest.memory}}), encoding="utf-8")
    filters = arguments.firecracker_filters
    return Contender(f"firecracker {engine} {transport}", [
        arguments.firecracker, "--no-api", "--level", "Error", "--config-file", str(config),
        *(["--enable-pci"] if transport == "pci" else []),
        *(["--seccomp-filter", filters] if filters else ["--no-seccomp"])])


def cloud_hypervisor(arguments, guest):
    # A reset is to it a boot anew.
    words = guest.words_for("pci").replace("vireo.end=reboot", "vireo.end=poweroff")
    return Contender("cloud-hypervisor pci", [
        arguments.cloud_hypervisor, "--kernel", str(guest.kernel),
        *(["--initramfs", str(guest.initramfs)] if guest.initramfs else []), "--cmdline", words, "--cpus",
        f"boot={guest.cpus}", "--memory", f"size={guest.memory}M", "--serial", "tty", "--console", "off", "--disk",
        *(f"path={disk.path},image_type=raw,{'readonly=on' if disk.readonly else 'queue_size=256'}"
          for disk in guest.disks)])
