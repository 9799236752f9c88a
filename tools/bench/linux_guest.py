# SPDX-License-Identifier: Apache-2.0
"""A Linux guest that runs a script of ours: the initramfs of guest-images with a further archive behind it."""
import shutil

# One command line for all VMMs, so that nobody has an advantage: vireo's default, word for word, and
# what Firecracker's default has for a keyboard controller that does not answer (0.4 s there).
BOOT_WORDS = ("console=ttyS0 reboot=k panic=-1 8250.nr_uarts=1 cryptomgr.notests noreplace-smp "
              "i8042.noaux i8042.nomux i8042.dumbkbd pci=off quiet")
# How a guest ends a VMM differs: Cloud Hypervisor by power-off, the others by a reset.
ADDED_WORDS = f"{BOOT_WORDS} vireo.do=added vireo.end=reboot"
END = 'case $line in *vireo.end=poweroff*) poweroff -f ;; *) reboot -f ;; esac\n'
MOUNTED = b"added: mounted"
MOUNT_AND_END = f"mount -t ext4 -o ro /dev/vda /root && echo {MOUNTED.decode()}\n{END}"
REGULAR_FILE = 0o100644


def entry(number, name, data, mode):
    """One file of a cpio archive, as the kernel reads it (newc)."""
    name = name.encode() + b"\0"
    # inode, mode, owner, group, links, time, size, device and special device, length of the name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return padded(head) + padded(data)


def padded(data):
    return data + b"\0" * (-len(data) % 4)


def archive(files):
    """A cpio archive of {name: text}."""
    entries = [entry(number, name, text.encode(), REGULAR_FILE) for number, (name, text) in enumerate(files.items(), 1)]
    return b"".join([*entries, entry(0, "TRAILER!!!", b"", 0)])


def add_files(initramfs, files, output):
    """`initramfs` with {name: text} in its root directory too: a kernel unpacks archives one after the other."""
    shutil.copyfile(initramfs, output)
    with open(output, "ab") as file:
        file.write(b"\0" * (-file.tell() % 512))
        file.write(archive(files))
    return output
