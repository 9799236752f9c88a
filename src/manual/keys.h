// SPDX-License-Identifier: Apache-2.0
// The keys of the configuration file as the manual tells them. src/config_keys.cc, which sets them,
// does not compile where a key of its table has no row here, or the other way.
#pragma once

#include <array>
#include <string_view>

namespace vireo::manual {

struct Key {
  std::string_view path;
  const char* type;     ///< what its value is; words that it may be stand in quotation marks
  const char* initial;  ///< its default as TOML, or empty where there is none
  const char* meaning;
};

inline constexpr auto kKeys = std::to_array<Key>({
    {"name", "text", "",
     "The VM's name: 1 to 128 of A-Z a-z 0-9 . _ -, beginning with neither . nor -."},
    {"namespace", "text", "", "A label of the VM, by the same rule. It is shown, and else unused."},
    {"labels", "table of texts", "",
     "Further labels, such as { revision = \"3\" }. They are shown, and else unused."},
    {"machine.cpus", "whole number", "1", "Virtual processors, 1 to 64."},
    {"machine.topology.sockets", "whole number", "1",
     "Sockets. Sockets times cores times threads are machine.cpus."},
    {"machine.topology.cores", "whole number", "1",
     "Cores of each socket. Where no key of the topology is set: as many as machine.cpus."},
    {"machine.topology.threads", "whole number", "1", "Threads of each core."},
    {"machine.memory", "size", "\"512M\"", "Guest memory: whole MiB from 32M to 1T."},
    {"machine.hugepages", R"("off", "transparent", "2M" or "1G")", "\"off\"",
     "The pages that guest memory is made of. What the host does not give is refused."},
    {"machine.mergeable", "true or false", "false",
     "Lets the host merge equal pages of its VMs (KSM)."},
    {"machine.prefault", "true or false", "false",
     "Takes all of guest memory from the host before the guest starts."},
    {"machine.uuid", "text", "",
     "The SMBIOS system UUID, which the guest takes for its machine's identity."},
    {"machine.cpu_features", "list of texts", "[]",
     "Changes of what KVM offers, by the names of /proc/cpuinfo: \"-avx512f\" hides a feature, "
     "\"+avx\" insists on one."},
    {"machine.transport", R"("auto", "mmio" or "pci")", "\"auto\"",
     "How virtio devices are reached. auto: by PCI (with MSI-X) where a device has several queues "
     "or "
     "MMIO has too few interrupt lines (18), else by MMIO, which boots faster."},
    {"machine.io_threads", "whole number", "0",
     "Further threads that serve queues, 0 to 64; with none the main thread serves all. Such a "
     "thread may wait, where the main thread must not: most file systems (ext4, not XFS and btrfs) "
     "have no way to begin a write to the page cache, and guests' writes cost half as much here."},
    {"machine.on_reboot", R"("exit" or "restart")", "\"exit\"",
     "What a guest's reboot does: the process ends with status 10, or the VM starts anew within "
     "it."},
    {"machine.track_dirty", "true or false", "false",
     "From the first snapshot on KVM notes which pages change, so that the next one may have these "
     "only. It costs a fault for each page that is written anew."},
    {"boot.kernel", "path", "",
     "A bzImage or an ELF vmlinux, found by its content. It must be given."},
    {"boot.initramfs", "path", "", "An initramfs, which the kernel is given."},
    {"boot.cache", R"("auto", "off" or path)", "\"auto\"",
     "The directory of unpacked kernels, or none. auto: /var/cache/vireo for root, else "
     "$XDG_CACHE_HOME/vireo, else ~/.cache/vireo. It holds 1 GiB at most."},
    {"boot.unpack", R"("auto" or "off")", "\"auto\"",
     "Whether a compressed kernel is unpacked by the host, which is faster."},
    {"boot.kaslr", R"("auto" or "off")", "\"auto\"",
     "Whether a kernel that was unpacked here, and can be moved, is put at a random address."},
    {"boot.cmdline", "text", "", "Replaces the default kernel command line."},
    {"boot.append", "text", "\"\"", "Added to the kernel command line."},
    {"serial.mode", R"("stdio", "file", "pty", "unix" or "null")", "\"stdio\"",
     "Where the guest's serial console is. On a terminal, Ctrl-A x leaves it and ends the VM."},
    {"serial.path", "path", "",
     "The file of mode file, the socket of mode unix: --serial MODE,path=PATH."},
    {"serial.append", "true or false", "false",
     "Of mode file: whether what the file holds stays: --serial file,path=PATH,append."},
    {"process.pid_file", "path", "", "Holds the process id while the VM runs."},
    {"process.timeline", "path", "",
     "Gets the boot timeline at the end: when each step was reached. See vireo-json(7)."},
    {"process.profile", "path", "",
     "Gets the profile at the end: every kind of exit with its count and time, and what KVM "
     "counted. See vireo-json(7)."},
    {"process.boot_timer", "true or false", "false",
     "Firecracker's boot timer: when the guest writes a byte 123 to 0xc0000000, the log tells how "
     "long its boot took."},
    {"process.notify", "fd:N or fd:NAME", "",
     "An inherited descriptor that gets one byte when the VM is ready."},
    {"log.level", R"("trace", "debug", "info", "warn", "error" or "off")", "\"info\"",
     "The least important lines that the log has."},
    {"log.format", R"("text" or "json")", "\"text\"", "One line of text, or of JSON, for each."},
    {"log.file", "path", "", "Where the log goes; stderr without it. SIGHUP opens it anew."},
    {"ready.when", R"("started", "serial:TEXT" or "mark:N")", "\"started\"",
     "What makes the VM ready: its first instruction, the text on its console, or a byte N that it "
     "writes to port 0x3f0."},
    {"ready.timeout", "duration", "\"30s\"",
     "How long that may take; then the process ends with status 13."},
    {"limits.cpu_affinity", "text or list of texts", "",
     "The host's processors that vCPUs may run on, such as \"0-3,8\"; one list for all, or one for "
     "each vCPU."},
    {"limits.core_scheduling", "true or false", "false",
     "Whether no thread of another trust shares a core with this VM."},
    {"limits.cgroup", "path", "",
     "A cgroup (version 2) below /sys/fs/cgroup that the process joins; made where it is not "
     "there, "
     "and removed then."},
    {"limits.memory_max", "size", "", "memory.max of that cgroup."},
    {"limits.cpu_quota", "text", "",
     "cpu.max of that cgroup, as a share of one processor: \"150%\"."},
    {"limits.cpu_weight", "whole number", "", "cpu.weight of that cgroup, 1 to 10000."},
    {"limits.pids_max", "whole number", "", "pids.max of that cgroup."},
    {"limits.io_max", "text", "",
     "io.max of that cgroup: a device and its limits, such as \"259:0 rbps=1048576 wiops=100\"."},
    {"limits.rlimits", "table of texts", "",
     "Resource limits of the process by their names in getrlimit(2), in small letters: "
     "{ nofile = \"SOFT:HARD\" }, one number for both, or unlimited."},
    {"rng", "table", "",
     "A virtio-rng device, which gives the guest random bytes of the host's; without the table "
     "there "
     "is none."},
    {"rng.rate_limit.bandwidth.size", "size", "",
     "What it gives in a time: so many bytes at most in each rate_limit.bandwidth.refill."},
    {"rng.rate_limit.bandwidth.refill", "duration", "", "In which time that limit is full again."},
    {"rng.rate_limit.bandwidth.burst", "size", "", "Bytes more, once, at the beginning."},
    {"rng.rate_limit.ops.size", "whole number", "",
     "The same for requests: so many at most in each rate_limit.ops.refill."},
    {"rng.rate_limit.ops.refill", "duration", "", "In which time that limit is full again."},
    {"rng.rate_limit.ops.burst", "whole number", "", "Requests more, once, at the beginning."},
    {"disk", "tables", "",
     "A virtio-blk device for each [[disk]]. The guest names them /dev/vda, /dev/vdb and so on in "
     "this order; volumes follow, and last the cloud-init seed. As an option its keys are words "
     "with commas between them: --disk id=root,path=root.ext4,root. A word without = stands for "
     "true, and two commas for one within a value."},
    {"disk.id", "text", "",
     "Its name, which is also the serial number that the guest sees (/dev/disk/by-id/virtio-ID): 1 "
     "to 20 of A-Z a-z 0-9 . _ -, beginning with neither . nor -. It must be given, and no other "
     "disk or volume may have it."},
    {"disk.path", "path", "", "A raw image or a block device. It must be given."},
    {"disk.root", "true or false", "false",
     "Whether the root file system is on it: the kernel command line gets root= and ro or rw."},
    {"disk.partuuid", "text", "",
     "The PARTUUID of the partition that the root file system is on, where the disk has "
     "partitions."},
    {"disk.readonly", "true or false", "false", "Whether it can only be read."},
    {"disk.direct", "true or false", "false",
     "Whether the host's page cache is left out (O_DIRECT)."},
    {"disk.cache", R"("writeback" or "unsafe")", "\"writeback\"",
     "writeback: what the guest flushes is on stable storage. unsafe: flushes are not offered, and "
     "a power failure of the host may cost the file system."},
    {"disk.queues", R"(whole number or "cpus")", "1",
     "Its queues, 1 to 64. cpus: one for each vCPU."},
    {"disk.overlay", "path", "",
     "A file of this VM's own that takes all that is written; path is then a base that is only "
     "read."},
    {"disk.base_format", R"("raw" or "overlay")", "",
     "What path is where there is an overlay: an image, or an overlay that a snapshot froze. An "
     "overlay that is there already says so itself; one that is made now lies over an image "
     "[raw]."},
    {"disk.rate_limit.bandwidth.size", "size", "",
     "What is read and written in a time: so many bytes at most in each "
     "rate_limit.bandwidth.refill."},
    {"disk.rate_limit.bandwidth.refill", "duration", "", "In which time that limit is full again."},
    {"disk.rate_limit.bandwidth.burst", "size", "", "Bytes more, once, at the beginning."},
    {"disk.rate_limit.ops.size", "whole number", "",
     "The same for requests: so many at most in each rate_limit.ops.refill."},
    {"disk.rate_limit.ops.refill", "duration", "", "In which time that limit is full again."},
    {"disk.rate_limit.ops.burst", "whole number", "", "Requests more, once, at the beginning."},
    {"volume", "tables", "",
     "A disk for each [[volume]], which is made when its file is missing or empty: sparse, with an "
     "empty ext4 file system (mke2fs of e2fsprogs makes it). From then on it is kept. As an "
     "option: "
     "--volume id=data,path=data.img,size=1G."},
    {"volume.id", "text", "",
     "As disk.id. The file system's label is its first 16 bytes. It must be given."},
    {"volume.path", "path", "", "Its file. It must be given, and be no descriptor."},
    {"volume.size", "size", "",
     "How large it is: whole MiB from 16M to 64T. It must be given, and the file of a volume that "
     "was made before must have it."},
    {"cloud_init", "table", "",
     "A NoCloud seed for cloud-init, which is the last disk, with the serial number cidata: an ISO "
     "of yours, or one that is made of texts (by genisoimage, mkisofs or xorrisofs)."},
    {"cloud_init.seed", "path", "", "An ISO with the volume label cidata."},
    {"cloud_init.user_data", "text", "",
     "What the guest shall do, such as \"#cloud-config\\nhostname: web-1\". It must be given where "
     "there is no seed."},
    {"cloud_init.meta_data", "text", "",
     "Which machine it is. Without it: the VM's name as local-hostname (at most 63 bytes of it, "
     "with "
     "- for _), and an instance-id that is another one when a text or the name is."},
    {"cloud_init.network_config", "text", "", "How its network is set up."},
    {"control.path", "path", "",
     "The control socket, which vireo-json(7) describes. Its owner alone may use it."},
    {"metrics.path", "path", "", "Gets the metrics at SIGUSR1 and at the end. See vireo-json(7)."},
    {"sandbox.enabled", "true or false", "true",
     "Whether the process gives up what it does not need before the guest's first instruction."},
    {"sandbox.allow_paths", "list of texts", "[]",
     "What the verbs of the control socket may name by its path, though the VM runs: directories "
     "with all below them on the same file system, image files and block devices, each by an "
     "absolute path. They are looked up at the start; a file or a link that is replaced later is "
     "not followed. The VM opens them as the user that it runs as, without a capability. What "
     "vireo ctl names needs not be here: that opens it, and hands it over."},
});

}  // namespace vireo::manual
