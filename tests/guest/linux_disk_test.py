#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vireo's disks as Linux has them: Debian's kernels, unmodified, over both transports.

Needs a KVM that runs kernel code: the test host has one.
"""
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import unittest
import uuid
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from linux_guest import INITRAMFS, Guest, InDirectory  # noqa: E402
from vireo_process import ARTIFACTS, run  # noqa: E402

DEBIAN = f"{ARTIFACTS}/rootfs.ext4"
# Four jobs, each in a quarter of the disk. What three of them write is read again and compared.
FIO = """--filename=/dev/vdb --size=8M --verify=crc32c --eta=never
    --name=direct --rw=randwrite --bsrange=4k-32k --direct=1 --ioengine=libaio --iodepth=16
    --name=cached --rw=randrw --bsrange=4k-32k --offset=8M --ioengine=psync --fsync=32
    --name=trimmed-and-written --rw=trimwrite --bs=16k --offset=16M --direct=1 --ioengine=libaio --iodepth=8
    --name=trimmed --rw=randtrim --bs=16k --offset=24M --direct=1 --ioengine=libaio --iodepth=8
    """.replace("\n", " ")
FIO_READER = ("--filename=/dev/vdc --size=4M --name=reader --rw=randread --bs=4k --direct=1 --ioengine=libaio "
              "--iodepth=8 --time_based --runtime=600 --eta=never")
MIB = 1 << 20
SECTOR = 512


def with_mbr(file_system, identifier):
    """A disk whose second partition has `file_system`, and whose PARTUUID is `identifier`."""
    signature, number = identifier.split("-")
    boot_sector = bytearray(SECTOR)
    boot_sector[440:444] = int(signature, 16).to_bytes(4, "little")
    entry = 446 + 16 * (int(number) - 1)
    boot_sector[entry:entry + 16] = struct.pack("<B3xB3xII", 0, 0x83, MIB // SECTOR, len(file_system) // SECTOR)
    boot_sector[510:] = b"\x55\xaa"
    return boot_sector.ljust(MIB, b"\0") + file_system


def with_gpt(file_system, identifier, number=3):
    """The same with a GUID partition table, in which this is partition `number`."""
    first, sectors = MIB // SECTOR, len(file_system) // SECTOR
    end = first + sectors + 33
    linux = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
    entry = linux.bytes_le + uuid.UUID(identifier).bytes_le + struct.pack("<QQQ", first, first + sectors - 1, 0)
    entries = (bytes(128 * (number - 1)) + entry).ljust(128 * 128, b"\0")

    def header(own, other, table):
        def pack(checksum):
            return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, checksum, 0, own, other, 34,
                               end - 34, uuid.UUID(int=1).bytes_le, table, 128, 128, zlib.crc32(entries))
        return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")

    protective = bytearray(SECTOR)
    protective[446:462] = struct.pack("<B3xB3xII", 0, 0xee, 1, end - 1)
    protective[510:] = b"\x55\xaa"
    begin = protective + header(1, end - 1, 2) + entries
    return begin.ljust(MIB, b"\0") + file_system + entries + header(end - 1, 1, end - 33)


class Disks(InDirectory):
    """What a guest sees of its disks, and what is on them when it has ended."""

    def look_and_write(self, transport):
        first = self.image("first.img", 16 * MIB, b"a")
        read_only = self.image("second.img", 3 * MIB + 512, b"b")
        queued = self.image("third.img", 4 * MIB, b"c")
        volume = self.directory / "volume.img"
        config = f"""
            [machine]
            cpus = 2
            transport = "{transport}"
            [[disk]]
            id = "twenty.bytes-of_name"
            path = "{first}"
            [[disk]]
            id = "2"
            path = "{read_only}"
            readonly = true
            [[disk]]
            id = "queued"
            path = "{queued}"
            queues = 2
            [[volume]]
            id = "data"
            path = "{volume}"
            size = "64M"
            """
        guest = Guest(self, self.directory, config)
        seen = guest.do("cd /sys/block; for disk in vd*; do echo $disk $(cat $disk/serial) "
                        "$(cat $disk/size $disk/ro) $(ls $disk/mq | wc -l); done")
        self.assertEqual(seen.splitlines(), ["vda twenty.bytes-of_name 32768 0 1", "vdb 2 6145 1 1",
                                             "vdc queued 8192 0 2", f"vdd data {64 * MIB // 512} 0 1"])
        # At 1 MiB and at the end of the disk.
        guest.do("cd /tmp; yes vireo | head -c 8192 >data")
        for place in 256, 4094:
            guest.do(f"dd if=data of=/dev/vda bs=4096 seek={place} conv=fsync 2>/dev/null")
        guest.do("dd if=data of=/dev/vdb bs=4096 conv=fsync", status=1)
        guest.do("mount -o ro /dev/vdb /root", status=255)
        for cpu in 0, 1:
            guest.do(f"taskset {1 << cpu} dd if=data of=/dev/vdc bs=4096 seek={2 * cpu} oflag=direct 2>/dev/null")
        held = first.stat().st_blocks
        guest.do("blkdiscard -o 4194304 -l 8388608 /dev/vda")
        self.assertLessEqual(first.stat().st_blocks, held - 8 * MIB // 512, "what is discarded is given back")
        guest.do("mount -t ext4 /dev/vdd /root && echo kept >/root/file && umount /root")
        guest.quit()

        written = b"vireo\n" * 1366
        expected = bytearray(b"a" * (16 * MIB))
        expected[4 * MIB:12 * MIB] = bytes(8 * MIB)
        for place in 256, 4094:
            expected[4096 * place:4096 * place + 8192] = written[:8192]
        self.assertTrue(first.read_bytes() == expected, "the bytes of the first disk")
        self.assertEqual(queued.read_bytes()[:16384], written[:8192] * 2)
        self.assertTrue(read_only.read_bytes() == b"b" * (3 * MIB + 512), "one that can only be read is as it was")

        guest = Guest(self, self.directory, config)
        self.assertEqual(guest.do("dd if=/dev/vda bs=4096 skip=256 count=1 2>/dev/null | head -n 1"), "vireo")
        self.assertEqual(guest.do("mount -t ext4 -o ro /dev/vdd /root && cat /root/file"), "kept")
        guest.quit()

    def test_mmio(self):
        self.look_and_write("mmio")

    def test_pci(self):
        self.look_and_write("pci")


class Roots(InDirectory):
    """A small system of its own on a disk, which the initramfs finds and enters."""

    def setUp(self):
        super().setUp()
        tree = self.directory / "tree"
        for name in ("bin", "dev", "proc", "sbin", "sys"):
            (tree / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "bin/busybox")
        init = tree / "sbin/init"
        init.write_text("#!/bin/busybox sh\n"
                        "sed -n 's, / , is the root: ,p' /proc/mounts\n"
                        "touch /written && echo written\npoweroff -f\n", encoding="ascii")
        init.chmod(0o755)
        image = self.directory / "root.ext4"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "8M"], check=True,
                       stdout=subprocess.DEVNULL,
                       env=dict(os.environ, PATH=f"{os.environ['PATH']}:/sbin:/usr/sbin"))
        self.file_system = image.read_bytes()

    def boot(self, disk, *words, kernel="cloud", transport="mmio"):
        """What a guest says whose root is `disk`; the disk is the second of two."""
        image = self.directory / "disk.img"
        image.write_bytes(disk)
        other = self.image("other.img", MIB)
        config = self.directory / "vm.toml"
        config.write_text(f'[machine]\ntransport = "{transport}"\n', encoding="ascii")
        ended = run("run", config, "--kernel", f"{ARTIFACTS}/{kernel}/vmlinuz", "--initramfs", INITRAMFS,
                    "--append", "quiet", "--disk", f"id=other,path={other}",
                    "--disk", ",".join(("id=system", f"path={image}", "root", *words)))
        self.assertEqual(ended.status, 0, ended)
        return ended.output

    def test_by_its_name(self):
        said = self.boot(self.file_system, transport="pci")
        self.assertRegex(said, r"/dev/vdb is the root: ext4 rw,.*\r\nwritten\r\n")

    def test_by_its_partuuid_in_an_mbr_for_a_kernel_whose_ext4_is_a_module(self):
        identifier = "0badcafe-02"
        said = self.boot(with_mbr(self.file_system, identifier), f"partuuid={identifier}", kernel="generic")
        self.assertRegex(said, r"/dev/vdb2 is the root: ext4 rw,.*\r\nwritten\r\n")

    def test_by_its_partuuid_in_a_gpt_only_to_be_read(self):
        identifier = "8C1F1C1E-1b0a-4f5e-9d53-0f0c0a7b6f2d"
        said = self.boot(with_gpt(self.file_system, identifier), f"partuuid={identifier}", "readonly",
                         transport="pci")
        self.assertRegex(said, r"/dev/vdb3 is the root: ext4 ro,")
        self.assertNotIn("written", said.replace("touch: /written", ""))


def data_checksum(path):
    """Of what a sparse file has, and where."""
    checksum, place = 0, 0
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        while place < size:
            try:
                place = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), place, os.SEEK_HOLE)
            checksum = zlib.crc32(struct.pack("<QQ", place, end), checksum)
            for part in range(place, end, MIB):
                checksum = zlib.crc32(os.pread(file.fileno(), min(MIB, end - part), part), checksum)
            place = end
    return checksum


class Debian(InDirectory):
    """Debian on a disk that is root, from the kernel's start to its end by systemd."""

    def setUp(self):
        super().setUp()
        self.base = self.directory / "root.ext4"
        subprocess.run(["cp", "--sparse=always", DEBIAN, self.base], check=True)

    def config(self, transport, disk=""):
        return f"""
            [machine]
            cpus = 2
            transport = "{transport}"
            [[disk]]
            id = "root"
            path = "{self.base}"
            root = true
            {disk}
            """

    def test_cloud_init_takes_its_seed(self):
        guest = Guest(self, self.directory, self.config("mmio") + """
            [cloud_init]
            user_data = '''
            #cloud-config
            hostname: web-1
            users: [{name: ada, gecos: Ada Lovelace, shell: /bin/bash}]
            runcmd: ["echo by $(hostname) at $(cat /sys/block/vdb/serial) >/root/ran"]
            '''
            meta_data = "instance-id: i-1"
            """.replace("            ", ""), debian=True)
        # Its own word for it: a Python program, on an emulated machine.
        self.assertIn("status: done", guest.do("cloud-init status --wait"))
        self.assertEqual(guest.do("hostname; cat /root/ran; getent passwd ada | cut -d : -f 5,7; cloud-init query v1.instance_id"),
                         "web-1\nby web-1 at cidata\nAda Lovelace:/bin/bash\ni-1")
        guest.quit()

    def look_at_root(self, guest):
        self.assertEqual(guest.do("findmnt -n -o SOURCE,FSTYPE / | tr -s ' '"), "/dev/vda ext4")
        self.assertIn("virtio-root", guest.do("ls /dev/disk/by-id"))
        guest.do("echo kept >/root/file")

    def verify(self, guest, socket):
        """Four jobs on one disk, and a fifth on another, while both are changed under them."""
        def drive(*words):
            done = run("ctl", socket, "drive", *words)
            self.assertEqual(done.status, 0, done)

        guest.do(f"fio {FIO} >/tmp/verified 2>&1 & verified=$!")
        guest.do(f"fio {FIO_READER} >/tmp/read 2>&1 & read=$!")
        drive("data", "size=40M")
        guest.do(f"until [ $(blockdev --getsize64 /dev/vdb) = {40 * MIB} ]; do sleep 0.1; done")
        for path, byte in ((self.others[1], "2"), (self.others[0], "1")) * 2:
            drive("other", f"path={path}")
            guest.do(f"until [ $(blockdev --getsize64 /dev/vdc) = {path.stat().st_size} ]; do sleep 0.1; done")
            self.assertEqual(guest.do("dd if=/dev/vdc iflag=direct bs=4096 skip=1023 count=1 2>/dev/null | tail -c 1"), byte)
        drive("data", "rate_limit.ops.size=100,rate_limit.ops.refill=10ms")
        guest.do("wait $verified")
        said = guest.do("cat /tmp/verified")
        self.assertEqual(said.count("err= 0:"), 4, said)
        guest.do("kill -INT $read; wait $read; true")
        said = guest.do("cat /tmp/read")
        self.assertIn("err= 0:", said)
        guest.do("dd if=/dev/urandom of=/dev/vdb bs=1M seek=39 count=1 conv=fsync 2>/dev/null")
        self.assertEqual(guest.do("dmesg | grep -iwE 'I/O error|reset' || true"), "")

    def look_afterwards(self, config):
        """What the guest has left, as a second one finds it."""
        data = self.data.read_bytes()
        self.assertTrue(data[24 * MIB:32 * MIB] == bytes(8 * MIB), "what is only discarded is zero")
        self.assertTrue(any(data[39 * MIB:]))
        guest = Guest(self, self.directory, config)
        self.assertEqual(guest.do("mount -t ext4 /dev/vda /root && cat /root/root/file"), "kept")
        self.assertNotIn("recovery", guest.do("dmesg | grep EXT4-fs"), "it was unmounted")
        guest.do("umount /root")
        guest.quit()

    def live_on(self, transport, disk=""):
        """All that a system does with its disks, until its power button."""
        self.data = self.image("data.img", 32 * MIB, b"x")
        self.others = [self.image("first.img", 4 * MIB, b"1"), self.image("second.img", 6 * MIB, b"2")]
        socket = self.directory / "vm.sock"
        config = self.config(transport, disk) + f"""
            [[disk]]
            id = "data"
            path = "{self.data}"
            queues = "cpus"
            [[disk]]
            id = "other"
            path = "{self.others[0]}"
            [control]
            path = "{socket}"
            """
        guest = Guest(self, self.directory, config, debian=True)
        self.look_at_root(guest)
        self.verify(guest, socket)
        guest.process.send_signal(signal.SIGTERM)
        guest.end()
        self.look_afterwards(config)

    def test_on_a_disk_of_its_own_mmio(self):
        self.live_on("mmio")

    def test_on_an_overlay_that_leaves_its_base_alone_pci(self):
        before = data_checksum(self.base)
        overlay = self.directory / "root.overlay"
        self.live_on("pci", f'overlay = "{overlay}"')
        self.assertEqual(data_checksum(self.base), before)
        self.assertGreater(overlay.stat().st_blocks * SECTOR, MIB)


if __name__ == "__main__":
    unittest.main()
