// SPDX-License-Identifier: Apache-2.0
// The commands of vireo with their examples and exit statuses. The command line is read by these
// tables (src/options.cc), and --help, the manual and the completions are made from them.
#pragma once

#include <array>
#include <span>
#include <string_view>

#include "src/manual/command_options.h"

namespace vireo::manual {

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
    {"VERB", "info, verify, merge, compress, decompress, split or seal", Completes::kNothing, true},
    {"FILE", "of info: one; of merge: a full one, and diffs in their order", Completes::kPath,
     true},
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
         "(verify), makes one of a full snapshot and diffs to it (merge), stores its memory\n"
         "compressed (compress), not so (decompress) or in a raw file beside it (split), or has\n"
         "the kernel guard it (seal).",
     .arguments = kSnapshotArguments,
     .options = kSnapshotOptions,
     .examples = kSnapshotExamples,
     .notes =
         "A merged snapshot has the UUID of its last diff, so that further diffs fit it. Its\n"
         "sources stay as they are; it is written beside its place and put there when it is "
         "whole.\n"
         "A compressed one (zstd) is the same snapshot, and may be given wherever one is wanted;\n"
         "a VM that has the file mapped keeps the one that it has.\n"
         "The raw file of a split one is FILE.mem: page n of guest memory at 4096 n. The two are\n"
         "kept in one directory; decompress makes them one again.\n"
         "Nobody can write to a sealed one (fs-verity), and what its disk gives back wrongly is\n"
         "not read.",
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
