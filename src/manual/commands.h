// SPDX-License-Identifier: Apache-2.0
// The commands of vireo with their options, examples and exit statuses. The command line is read by
// these tables (src/options.cc), and --help, the manual and the completions are made from them.
#pragma once

#include <array>
#include <span>
#include <string_view>

namespace vireo::manual {

/// How a shell completes a value.
enum class Completes : unsigned char {
  kNothing,
  kPath,
  kConfigFile,  ///< a path that ends in .toml
  kWords,       ///< one of Option::words
  kVerb,        ///< one of kVerbs
};

struct Option {
  const char* name;
  const char* value;  ///< what --help calls its value; null: a flag
  const char* help;
  Completes completes = Completes::kNothing;
  /// Of kWords: separated by spaces. One that ends in ':' wants more text behind it.
  std::string_view words = {};
  const char* key = nullptr;  ///< the key of the configuration file that it sets
};

struct Argument {
  const char* name;
  const char* help;
  Completes completes;
  bool required;
};

struct ExitStatus {
  unsigned number;
  const char* meaning;
};

struct Command {
  std::string_view name;
  const char* usage;    ///< what stands behind the name
  const char* summary;  ///< beside the others, in a few words
  const char* purpose;  ///< on top of its own help
  std::span<const Argument> arguments;
  std::span<const Option> options;
  std::span<const char* const> examples;
  const char* notes;  ///< further paragraphs of its help
  std::span<const ExitStatus> statuses;
};

inline constexpr auto kRunArguments = std::to_array<Argument>({
    {"FILE", "configuration file (TOML); options win over it", Completes::kConfigFile, false},
});
inline constexpr auto kRestoreArguments = std::to_array<Argument>({
    {"SNAPSHOT", "what vireo ctl SOCKET snapshot has made", Completes::kPath, true},
});
inline constexpr auto kCtlArguments = std::to_array<Argument>({
    {"SOCKET", "what the VM was given as --control", Completes::kPath, true},
    {"VERB", "see below", Completes::kVerb, true},
    {"ARGUMENT", "of drive: which disk; of snapshot: its file", Completes::kNothing, false},
    {"SETTINGS", "of drive: what changes, as in size=20G", Completes::kNothing, false},
});
inline constexpr auto kDiskArguments = std::to_array<Argument>({
    {"VERB", "info, commit or rebase", Completes::kNothing, true},
    {"OVERLAY", "the overlay's file", Completes::kPath, true},
});

inline constexpr auto kSnapshotArguments = std::to_array<Argument>({
    {"VERB", "info, verify, merge, compress or decompress", Completes::kNothing, true},
    {"FILE", "of info: one; of merge: a full one, and diffs in their order", Completes::kPath,
     true},
});

inline constexpr auto kRunOptions = std::to_array<Option>({
    {.name = "--name", .value = "NAME", .help = "the VM's name", .key = "name"},
    {.name = "--kernel",
     .value = "PATH",
     .help = "bzImage or ELF vmlinux, found by its content",
     .completes = Completes::kPath,
     .key = "boot.kernel"},
    {.name = "--initramfs",
     .value = "PATH",
     .help = "initramfs (cpio)",
     .completes = Completes::kPath,
     .key = "boot.initramfs"},
    {.name = "--cmdline",
     .value = "TEXT",
     .help = "replaces the default kernel command line",
     .key = "boot.cmdline"},
    {.name = "--append",
     .value = "TEXT",
     .help = "added to the kernel command line",
     .key = "boot.append"},
    {.name = "--cpus", .value = "N", .help = "virtual processors, 1-64 [1]", .key = "machine.cpus"},
    {.name = "--memory",
     .value = "SIZE",
     .help = "guest memory, 32M-1T [512M]",
     .key = "machine.memory"},
    {.name = "--control",
     .value = "PATH",
     .help = "listens here for vireo ctl and other HTTP clients",
     .completes = Completes::kPath,
     .key = "control.path"},
    {.name = "--ready",
     .value = "WHEN",
     .help = "started, serial:TEXT or mark:N makes the VM ready [started]",
     .completes = Completes::kWords,
     .words = "started serial: mark:",
     .key = "ready.when"},
    {.name = "--notify",
     .value = "fd:N",
     .help = "gets one byte when the VM is ready",
     .completes = Completes::kWords,
     .words = "fd:",
     .key = "process.notify"},
    {.name = "--metrics",
     .value = "FILE",
     .help = "written on SIGUSR1 and at the end, JSON",
     .completes = Completes::kPath,
     .key = "metrics.path"},
    {.name = "--sandbox",
     .value = "on|off",
     .help = "confines the process before the guest runs [on]",
     .completes = Completes::kWords,
     .words = "on off",
     .key = "sandbox.enabled"},
    {.name = "--allow-path",
     .value = "DIR",
     .help = "verbs of the control socket may name what is in it; for each directory once",
     .completes = Completes::kPath,
     .key = "sandbox.allow_paths"},
    {.name = "--pid-file",
     .value = "PATH",
     .help = "holds the process id while the VM runs",
     .completes = Completes::kPath,
     .key = "process.pid_file"},
    {.name = "--timeline",
     .value = "FILE",
     .help = "writes the boot timeline, JSON",
     .completes = Completes::kPath,
     .key = "process.timeline"},
    {.name = "--profile",
     .value = "FILE",
     .help = "counts and times every kind of exit, JSON",
     .completes = Completes::kPath,
     .key = "process.profile"},
    {.name = "--log-level",
     .value = "LEVEL",
     .help = "trace, debug, info, warn, error, off [info]",
     .completes = Completes::kWords,
     .words = "trace debug info warn error off",
     .key = "log.level"},
    {.name = "--log-format",
     .value = "FORMAT",
     .help = "text or json [text]",
     .completes = Completes::kWords,
     .words = "text json",
     .key = "log.format"},
    {.name = "--log-file",
     .value = "PATH",
     .help = "default: stderr",
     .completes = Completes::kPath,
     .key = "log.file"},
    {.name = "--serial",
     .value = "MODE[,...]",
     .help = "stdio, file, pty, unix or null; path=PATH, append [stdio]",
     .completes = Completes::kWords,
     .words = "stdio file,path= pty unix,path= null",
     .key = "serial.mode"},
    {.name = "--disk",
     .value = "KEY=VALUE,...",
     .help = "a disk, such as id=root,path=root.ext4,root; for each disk once",
     .key = "disk"},
    {.name = "--volume",
     .value = "KEY=VALUE,...",
     .help = "a disk made when it is not there, such as id=data,path=data.img,size=1G",
     .key = "volume"},
    {.name = "--rng",
     .value = nullptr,
     .help = "a virtio-rng device, which gives the guest random bytes",
     .key = "rng"},
    {.name = "--boot-timer",
     .value = nullptr,
     .help = "Firecracker's boot timer at 0xc0000000",
     .key = "process.boot_timer"},
});
inline constexpr auto kRestoreOptions = std::to_array<Option>({
    {.name = "--stale-disk",
     .value = "ID,...",
     .help = "disks that are taken as they are, though they have moved on since"},
    {.name = "--memory",
     .value = "map|fill|copy",
     .help =
         "map: pages are the file's until they are written; fill, copy: all are read, while the "
         "guest runs or first",
     .completes = Completes::kWords,
     .words = "map fill copy"},
    {.name = "--prefault",
     .value = nullptr,
     .help = "makes all memory present before the guest goes on: with map, as the file's pages",
     .key = "machine.prefault"},
    {.name = "--name", .value = "NAME", .help = "the VM's name [as it was]", .key = "name"},
    {.name = "--disk",
     .value = "KEY=VALUE,...",
     .help = "another place of a disk, such as id=root,path=other.ext4; for each disk once",
     .key = "disk"},
    {.name = "--volume", .value = "KEY=VALUE,...", .help = "the same of a volume", .key = "volume"},
    {.name = "--serial",
     .value = "MODE[,...]",
     .help = "stdio, file, pty, unix or null; path=PATH, append [as it was]",
     .completes = Completes::kWords,
     .words = "stdio file,path= pty unix,path= null",
     .key = "serial.mode"},
    {.name = "--control",
     .value = "PATH",
     .help = "listens here for vireo ctl and other HTTP clients",
     .completes = Completes::kPath,
     .key = "control.path"},
    {.name = "--ready",
     .value = "WHEN",
     .help = "started, serial:TEXT or mark:N makes the VM ready [started]",
     .completes = Completes::kWords,
     .words = "started serial: mark:",
     .key = "ready.when"},
    {.name = "--notify",
     .value = "fd:N",
     .help = "gets one byte when the VM is ready",
     .completes = Completes::kWords,
     .words = "fd:",
     .key = "process.notify"},
    {.name = "--metrics",
     .value = "FILE",
     .help = "written on SIGUSR1 and at the end, JSON",
     .completes = Completes::kPath,
     .key = "metrics.path"},
    {.name = "--sandbox",
     .value = "on|off",
     .help = "confines the process before the guest runs [on]",
     .completes = Completes::kWords,
     .words = "on off",
     .key = "sandbox.enabled"},
    {.name = "--allow-path",
     .value = "DIR",
     .help = "verbs of the control socket may name what is in it; for each directory once",
     .completes = Completes::kPath,
     .key = "sandbox.allow_paths"},
    {.name = "--pid-file",
     .value = "PATH",
     .help = "holds the process id while the VM runs",
     .completes = Completes::kPath,
     .key = "process.pid_file"},
    {.name = "--timeline",
     .value = "FILE",
     .help = "writes the boot timeline, JSON",
     .completes = Completes::kPath,
     .key = "process.timeline"},
    {.name = "--profile",
     .value = "FILE",
     .help = "counts and times every kind of exit, JSON",
     .completes = Completes::kPath,
     .key = "process.profile"},
    {.name = "--log-level",
     .value = "LEVEL",
     .help = "trace, debug, info, warn, error, off [info]",
     .completes = Completes::kWords,
     .words = "trace debug info warn error off",
     .key = "log.level"},
    {.name = "--log-format",
     .value = "FORMAT",
     .help = "text or json [text]",
     .completes = Completes::kWords,
     .words = "text json",
     .key = "log.format"},
    {.name = "--log-file",
     .value = "PATH",
     .help = "default: stderr",
     .completes = Completes::kPath,
     .key = "log.file"},
});
inline constexpr auto kDoctorOptions = std::to_array<Option>({
    {.name = "--json", .value = nullptr, .help = "the report for programs, with the same lines"},
});
inline constexpr auto kCtlOptions = std::to_array<Option>({
    {.name = "--timeout",
     .value = "DURATION",
     .help = "of stop: how long the guest may take until it is ended [10s]"},
    {.name = "--then",
     .value = "resume|stop",
     .help = "of snapshot: what becomes of the VM when its file is there [resume]",
     .completes = Completes::kWords,
     .words = "resume stop"},
    {.name = "--disks",
     .value = "freeze|reflink|none",
     .help = "of snapshot: what keeps the disks as they are in it. freeze: they are only read from "
             "then on, and the VM writes to overlays; reflink: they are copied, on file systems "
             "that can; none: others see to it",
     .completes = Completes::kWords,
     .words = "freeze reflink none"},
    {.name = "--disk-files",
     .value = "ID=PATH,...",
     .help = "of snapshot: where the overlays or copies are made [beside the snapshot, as "
             "NAME.ID.overlay or NAME.ID.disk]"},
    {.name = "--rounds",
     .value = "N",
     .help = "of snapshot: memory is written so often at most while the guest runs [8]"},
    {.name = "--left",
     .value = "SIZE",
     .help = "of snapshot: the guest stands still for no more memory than that [4M]"},
    {.name = "--over",
     .value = "pause|wait|refuse",
     .help =
         "of snapshot: where the guest changes more during the last round. pause: it stands still "
         "for all of that; wait: there are more rounds, until it changes less; refuse: there is "
         "no snapshot [pause]",
     .completes = Completes::kWords,
     .words = "pause wait refuse"},
    {.name = "--diff",
     .value = nullptr,
     .help = "of snapshot: only the memory that has changed since the one before"},
    {.name = "--parent",
     .value = "FILE",
     .help = "of snapshot --diff: since this one",
     .completes = Completes::kPath},
    {.name = "--json", .value = nullptr, .help = "prints the answer as it came, for programs"},
});

inline constexpr auto kDiskOptions = std::to_array<Option>({
    {.name = "--base",
     .value = "PATH",
     .help = "of rebase: the new base; of commit: the base, where it is not at its place",
     .completes = Completes::kPath},
    {.name = "--base-format",
     .value = "raw|overlay",
     .help = "of rebase: what the new base is [raw]",
     .completes = Completes::kWords,
     .words = "raw overlay"},
    {.name = "--moved",
     .value = nullptr,
     .help = "of rebase: the new base is the old one, at another place"},
    {.name = "--json", .value = nullptr, .help = "of info: for programs"},
});

inline constexpr auto kSnapshotOptions = std::to_array<Option>({
    {.name = "--output",
     .value = "FILE",
     .help = "of merge: the snapshot that it makes; of (de)compress: not in its own place but here",
     .completes = Completes::kPath},
    {.name = "--json", .value = nullptr, .help = "of info: for programs"},
});

inline constexpr auto kRunExamples = std::to_array<const char*>({
    "vireo run --kernel vmlinuz --initramfs initramfs.cpio",
    "vireo run web.toml --memory 1G --append quiet --timeline boot.json",
});
inline constexpr auto kCheckExamples = std::to_array<const char*>({
    "vireo check web.toml",
    "vireo check web.toml --memory 1G >resolved.toml",
});
inline constexpr auto kRestoreExamples = std::to_array<const char*>({
    "vireo restore web.vsnap",
    "vireo restore web.vsnap --name web-2 --disk id=root,path=web-2.ext4 --control web-2.sock",
});
inline constexpr auto kDoctorExamples = std::to_array<const char*>({
    "vireo doctor",
    "vireo doctor --json | jq '.findings[] | select(.state == \"lacking\")'",
});
inline constexpr auto kCtlExamples = std::to_array<const char*>({
    "vireo ctl web-1.sock status",
    "vireo ctl web-1.sock stop --timeout 30s",
    "vireo ctl web-1.sock metrics --json",
    "vireo ctl web-1.sock snapshot web.vsnap --then stop",
    "vireo ctl web-1.sock drive data size=20G",
    "vireo ctl web-1.sock drive data rate_limit.ops.size=500,rate_limit.ops.refill=1s",
    "curl --unix-socket web-1.sock http://vm/vireo/status",
});

inline constexpr auto kDiskExamples = std::to_array<const char*>({
    "vireo disk info web-1.overlay",
    "vireo disk commit web-1.overlay",
    "vireo disk rebase web-1.overlay --base debian-2.ext4",
});

inline constexpr auto kSnapshotExamples = std::to_array<const char*>({
    "vireo snapshot info web.vsnap",
    "vireo snapshot verify web.vsnap web-1.vsnap",
    "vireo snapshot merge web.vsnap web-1.vsnap --output web-merged.vsnap",
    "vireo snapshot compress web.vsnap",
});

inline constexpr auto kRunStatuses = std::to_array<ExitStatus>({
    {0, "the guest powered off, or an ordered stop"},
    {10, "the guest asked for a reboot"},
    {11, "the guest panicked"},
    {12, "the guest crashed: triple fault, or KVM cannot go on"},
    {13, "not ready in time"},
    {64, "wrong command line"},
    {65, "unusable input, such as a kernel that is none"},
    {66, "input missing"},
    {69, "KVM is missing or lacks what vireo needs"},
    {70, "our own fault"},
    {71, "the system refused a resource"},
    {77, "permission denied"},
    {78, "wrong configuration"},
});
inline constexpr auto kCheckStatuses = std::to_array<ExitStatus>({
    {0, "the configuration is valid"},
    {64, "wrong command line"},
    {65, "unusable input: a descriptor that cannot be read"},
    {66, "the file is missing"},
    {71, "the system refused a resource"},
    {77, "permission denied"},
    {78, "wrong configuration"},
});
inline constexpr auto kDoctorStatuses = std::to_array<ExitStatus>({
    {0, "VMs can run here"},
    {64, "wrong command line"},
    {69, "KVM is missing or lacks what vireo needs"},
    {71, "the system refuses something else that every VM needs"},
    {77, "the user may not open /dev/kvm"},
});
inline constexpr auto kCtlStatuses = std::to_array<ExitStatus>({
    {0, "done"},
    {1, "the VM refused (its reason on stderr)"},
    {64, "wrong command line"},
    {69, "nobody is behind that socket"},
    {71, "what answers is no VM, or the system refused a resource"},
});

inline constexpr auto kDiskStatuses = std::to_array<ExitStatus>({
    {0, "done"},
    {64, "wrong command line"},
    {65, "no overlay, or not of this base"},
    {66, "a file is missing"},
    {71, "a VM uses it, or the system refused a resource"},
    {77, "permission denied"},
    {78, "a base that cannot grow"},
});

inline constexpr auto kSnapshotStatuses = std::to_array<ExitStatus>({
    {0, "done; of verify: all are whole"},
    {64, "wrong command line"},
    {65, "no snapshot, or a damaged one, or no diff to the one before it"},
    {66, "a file is missing"},
    {71, "the system refused a resource"},
    {77, "permission denied"},
});

inline constexpr const char* kFileOnlyKeys =
    "Keys that only the file has: namespace, labels, machine.topology, machine.hugepages,\n"
    "machine.mergeable, machine.prefault, machine.uuid, machine.cpu_features, machine.transport,\n"
    "machine.io_threads, machine.on_reboot, machine.track_dirty, boot.cache, boot.unpack,\n"
    "boot.kaslr, ready.timeout, limits, rng.rate_limit, cloud_init. The manual page vireo.toml(5)\n"
    "tells each.";

inline constexpr auto kCommands = std::to_array<Command>({
    {.name = "run",
     .usage = "[FILE.toml] [options]",
     .summary = "boot a VM; the process ends with it",
     .purpose =
         "Boots a VM and stays in the foreground until it ends; on a terminal, Ctrl-A x ends it.",
     .arguments = kRunArguments,
     .options = kRunOptions,
     .examples = kRunExamples,
     .notes = kFileOnlyKeys,
     .statuses = kRunStatuses},
    {.name = "restore",
     .usage = "SNAPSHOT [options]",
     .summary = "start a VM from a snapshot",
     .purpose = "Starts a VM as it was when its snapshot was taken, and stays in the foreground\n"
                "until it ends.",
     .arguments = kRestoreArguments,
     .options = kRestoreOptions,
     .examples = kRestoreExamples,
     .notes =
         "What belongs to the process comes from the options: control socket, log, limits,\n"
         "sandbox. The machine, its disks, its serial port and its name are as they were, unless\n"
         "an option puts them elsewhere. The snapshot stays where it is and as it is while a VM\n"
         "has it mapped.",
     .statuses = kRunStatuses},
    {.name = "check",
     .usage = "FILE.toml [options]",
     .summary = "validate, print the resolved configuration",
     .purpose = "Validates and prints the resolved configuration.",
     .arguments = kRunArguments,
     .options = kRunOptions,
     .examples = kCheckExamples,
     .notes = kFileOnlyKeys,
     .statuses = kCheckStatuses},
    {.name = "ctl",
     .usage = "SOCKET VERB [ARGUMENT] [options]",
     .summary = "ask a running VM, or tell it what to do",
     .purpose = "Asks a running VM over its control socket, or tells it what to do.",
     .arguments = kCtlArguments,
     .options = kCtlOptions,
     .examples = kCtlExamples,
     .notes =
         "SETTINGS are words of --disk, separated by commas: size=20G grows the disk (of a file, "
         "or\n"
         "an overlay), path=FILE puts another file in its place, rate_limit.… are other limits,\n"
         "and rate_limit=none lifts them. Without settings, a disk whose file or device was grown\n"
         "by other means has that size from now on. The guest goes on meanwhile.",
     .statuses = kCtlStatuses},
    {.name = "disk",
     .usage = "VERB OVERLAY [options]",
     .summary = "look at an overlay, merge it, give it another base",
     .purpose = "Tells what an overlay holds (info), writes it into its base (commit), or puts it\n"
                "over another base, where it reads as before (rebase).",
     .arguments = kDiskArguments,
     .options = kDiskOptions,
     .examples = kDiskExamples,
     .notes =
         "No VM may use it meanwhile. After a commit every other overlay over that base is of no\n"
         "use any more. A commit or rebase that was cut short can be done again.",
     .statuses = kDiskStatuses},
    {.name = "snapshot",
     .usage = "VERB FILE... [options]",
     .summary = "check a snapshot, fold diffs into it, compress it",
     .purpose =
         "Tells what a snapshot holds (info), whether every byte of it is as it was written\n"
         "(verify), makes one of a full snapshot and diffs to it (merge), or stores its memory\n"
         "compressed (compress) or not (decompress).",
     .arguments = kSnapshotArguments,
     .options = kSnapshotOptions,
     .examples = kSnapshotExamples,
     .notes =
         "A merged snapshot has the UUID of its last diff, so that further diffs fit it. Its\n"
         "sources stay as they are; it is written beside its place and put there when it is "
         "whole.\n"
         "A compressed one (zstd) is the same snapshot, and may be given wherever one is wanted;\n"
         "a VM that has the file mapped keeps the one that it has.",
     .statuses = kSnapshotStatuses},
    {.name = "doctor",
     .usage = "[--json]",
     .summary = "what this host offers, and what it lacks",
     .purpose = "Tells what this host offers VMs; for each lack, what it costs and how to mend it.",
     .arguments = {},
     .options = kDoctorOptions,
     .examples = kDoctorExamples,
     .notes =
         "The report for programs has version, vireo (its version), can_run and findings; each of\n"
         "these has section, id, title, state (ok, lacking, unknown), value, number (the value,\n"
         "where it is one, or null), cost and remedy (both empty unless it is lacking). Every\n"
         "host has every id.",
     .statuses = kDoctorStatuses},
});

}  // namespace vireo::manual
