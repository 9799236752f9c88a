// SPDX-License-Identifier: Apache-2.0
// Every JSON that vireo writes or reads, field by field, for vireo-json(7). tests/program holds it
// to what vireo writes, in both directions.
#pragma once

#include <array>
#include <span>
#include <string_view>

namespace vireo::manual {

struct Field {
  /// Its place: "steps[].name" is the field name of each object in the array steps. A part in
  /// capitals is any name.
  const char* path;
  const char* type;
  const char* meaning;
  bool optional = false;  ///< it is left out where it would tell nothing
};

inline constexpr Field kVersion = {"version", "integer", "1"};

inline constexpr auto kErrorFields = std::to_array<Field>({
    kVersion,
    {"error", "string", "Why it was refused, one line."},
});
inline constexpr auto kStatusFields = std::to_array<Field>({
    kVersion,
    {"name", "string", "name of the configuration, or empty."},
    {"namespace", "string", "namespace of the configuration, or empty."},
    {"labels", "object", "labels of the configuration."},
    {"labels.NAME", "string", "One of them.", true},
    {"state", "string", "starting, standby, running, pausing, paused, saving or stopping."},
    {"ready", "boolean", "Whether ready.when has happened."},
    {"pid", "integer", "The process id."},
    {"uptime_us", "integer", "Microseconds since the process started."},
    {"restarts", "integer", "Reboots of the guest within this process."},
    {"cpus", "integer", "Virtual processors."},
    {"memory_bytes", "integer", "Guest memory."},
});
inline constexpr auto kConfigFields = std::to_array<Field>({
    kVersion,
    {"config", "object",
     "The tables and keys of vireo.toml(5), every default filled in; what has none and was not set "
     "is left out."},
});
inline constexpr auto kStatsFields = std::to_array<Field>({
    kVersion,
    {"vcpus", "array", "One object for each vCPU."},
    {"vcpus[].vcpu", "integer", "Its number, from 0."},
    {"vcpus[].in_kvm_run_us", "integer",
     "Microseconds inside KVM_RUN: the guest itself, and what KVM does for it."},
    {"vcpus[].exits", "array", "Exits to vireo, by phase, the most frequent first."},
    {"vcpus[].exits[].phase", "integer", "How many moments the guest had marked before."},
    {"vcpus[].exits[].reason", "string",
     "io, mmio, rdmsr, wrmsr, intr, shutdown, internal_error, or kvm_exit_N."},
    {"vcpus[].exits[].address", "string",
     "Of io, mmio, rdmsr and wrmsr: the port, address or MSR, such as 0x3f8; other where the table "
     "was full.",
     true},
    {"vcpus[].exits[].direction", "string", "Of the same: read or write.", true},
    {"vcpus[].exits[].device", "string", "Of io and mmio: the device there, or none.", true},
    {"vcpus[].exits[].count", "integer", "How many there were."},
    {"vcpus[].exits[].handling_us", "integer",
     "Microseconds in vireo, from the exit to the next entry."},
    {"vcpus[].kvm", "object", "KVM's own counters of the vCPU that are not zero."},
    {"vcpus[].kvm.NAME", "integer", "One of them, by KVM's name and in KVM's unit.", true},
    {"kvm", "object", "KVM's own counters of the VM that are not zero."},
    {"kvm.NAME", "integer", "One of them, by KVM's name and in KVM's unit.", true},
});
inline constexpr auto kMetricsFields = std::to_array<Field>({
    kVersion,
    {"vm", "string", "name of the configuration, or empty."},
    {"metrics", "object", "The metrics by their names."},
    {"metrics.vireo_uptime_seconds", "number", "Since the process started."},
    {"metrics.vireo_ready", "integer", "1 where the guest is ready, else 0."},
    {"metrics.vireo_paused", "integer", "1 where the guest stands still, else 0."},
    {"metrics.vireo_restarts", "integer", "Counter: reboots of the guest within this process."},
    {"metrics.vireo_cpu_seconds", "object",
     "Counter: CPU time of the process, the guest's included, by mode."},
    {"metrics.vireo_cpu_seconds.user", "number", "In user mode, which is where guests run."},
    {"metrics.vireo_cpu_seconds.system", "number", "In the host's kernel."},
    {"metrics.vireo_memory_bytes", "integer", "Memory that the guest has."},
    {"metrics.vireo_console_bytes", "integer",
     "Counter: bytes that the guest wrote to its console."},
    {"metrics.vireo_console_lost_bytes", "integer", "Counter: of these, what no reader took."},
    {"metrics.vireo_resident_bytes", "integer",
     "Memory that the process holds, the guest's included.", true},
    {"metrics.vireo_vcpu_run_seconds", "object", "Counter: time inside KVM_RUN, by vcpu."},
    {"metrics.vireo_vcpu_run_seconds.VCPU", "number", "That of the vCPU with this number."},
    {"metrics.vireo_exits", "object", "Counter: exits from KVM_RUN, by reason.", true},
    {"metrics.vireo_exits.REASON", "integer", "Those of one reason, called as in stats.", true},
    {"metrics.vireo_exit_handling_seconds", "object",
     "Counter: time in the handling of exits, by reason.", true},
    {"metrics.vireo_exit_handling_seconds.REASON", "number", "That of one reason.", true},
    {"metrics.vireo_disk_reads", "object", "Counter: reads that are done, by disk.", true},
    {"metrics.vireo_disk_reads.DISK", "integer", "That of the disk with this id.", true},
    {"metrics.vireo_disk_writes", "object", "Counter: writes that are done, by disk.", true},
    {"metrics.vireo_disk_writes.DISK", "integer", "That of the disk with this id.", true},
    {"metrics.vireo_disk_flushes", "object", "Counter: flushes that are done, by disk.", true},
    {"metrics.vireo_disk_flushes.DISK", "integer", "That of the disk with this id.", true},
    {"metrics.vireo_disk_discards", "object",
     "Counter: discards that are done, and zeroes written, by disk.", true},
    {"metrics.vireo_disk_discards.DISK", "integer", "That of the disk with this id.", true},
    {"metrics.vireo_disk_read_bytes", "object", "Counter: bytes of the reads, by disk.", true},
    {"metrics.vireo_disk_read_bytes.DISK", "integer", "That of the disk with this id.", true},
    {"metrics.vireo_disk_written_bytes", "object", "Counter: bytes of the writes, by disk.", true},
    {"metrics.vireo_disk_written_bytes.DISK", "integer", "That of the disk with this id.", true},
    {"metrics.vireo_disk_errors", "object",
     "Counter: requests that the host failed (EIO, ENOSPC), by disk.", true},
    {"metrics.vireo_disk_errors.DISK", "integer", "That of the disk with this id.", true},
    {"metrics.vireo_disk_refused", "object",
     "Counter: requests of the guest that cannot be, by disk.", true},
    {"metrics.vireo_disk_refused.DISK", "integer", "That of the disk with this id.", true},
    {"metrics.vireo_disk_throttled", "object", "Counter: waits for a rate limit, by disk.", true},
    {"metrics.vireo_disk_throttled.DISK", "integer", "That of the disk with this id.", true},
});
inline constexpr auto kEventFields = std::to_array<Field>({
    kVersion,
    {"event", "string",
     "A state of status; ready; restarted; lost (this listener was too slow for some); at the end "
     "one of power_off, reboot, panic, crash, stopped, not_ready, host_memory and failed."},
    {"at_us", "integer", "Microseconds since the process started."},
    {"vm", "string", "name of the configuration, or empty."},
    {"detail", "string", "The same in words, where there is more to say.", true},
});
inline constexpr auto kStateFields = std::to_array<Field>({
    kVersion,
    {"state", "string", "The state of status that the VM is in now."},
});
inline constexpr auto kStopFields = std::to_array<Field>({
    {"timeout", "string", "How long the guest may take, such as 30s. Without it: 10s.", true},
});
inline constexpr auto kDriveFields = std::to_array<Field>({
    {"id", "string", "Which disk or volume."},
    {"size", "string", "Such as 20G: the disk grows to it.", true},
    {"path", "string",
     "What the file that comes beside the request (SCM_RIGHTS) is called, which takes the place of "
     "the one before. Without a file: an absolute path within sandbox.allow_paths, where it is.",
     true},
    {"rate_limit", "object or null", "As in a [[disk]] of vireo.toml(5); null lifts the limits.",
     true},
    {"rate_limit.bandwidth", "object or null", "With size, refill and burst; null lifts it.", true},
    {"rate_limit.ops", "object or null", "The same.", true},
});
inline constexpr auto kDriveStateFields = std::to_array<Field>({
    kVersion,
    {"id", "string", "Which."},
    {"path", "string", "What it is on now."},
    {"size_bytes", "integer", "Its size now."},
});
inline constexpr auto kSnapshotFields = std::to_array<Field>({
    {"then", "string",
     "resume (without it), pause or stop: what becomes of the VM. One that was paused stays so.",
     true},
    {"disks", "string",
     "freeze: the files that disks are written to are only read from then on, and the VM writes to "
     "overlays over them. reflink: they are copied, on a file system that shares blocks. none: "
     "they "
     "are seen to by others. A VM with a disk that it writes, and goes on to write, has to be "
     "told.",
     true},
    {"disk_files", "array of objects",
     "Of freeze and reflink: the overlay or the copy of each disk and volume that is written, "
     "empty files, open for reading and writing, beside the request behind the snapshot's.",
     true},
    {"disk_files[].id", "string", "Of the disk or volume.", true},
    {"disk_files[].path", "string", "The absolute path of its file, which has it already.", true},
    {"rounds", "integer", "Memory is written so often at most while the guest runs; 8 without it.",
     true},
    {"left", "string", "What may be left for the guest's pause, a size; \"4M\" without it.", true},
    {"over", "string",
     "Where the guest changes more than that during the last round. pause (without it): it stands "
     "still for all of that. wait: there are more rounds, until it changes less. refuse: there is "
     "no snapshot.",
     true},
    {"diff", "boolean", "Only memory that has changed since parent.", true},
    {"parent", "string", "The UUID of a snapshot; without it, the one before in this process.",
     true},
});
inline constexpr auto kSnapshotDoneFields = std::to_array<Field>({
    kVersion,
    {"uuid", "string", "Of the snapshot."},
    {"data_bytes", "integer", "Guest memory in the file."},
    {"pause_us", "integer", "Microseconds for which the guest stood still."},
});
inline constexpr auto kLoadFields = std::to_array<Field>({
    {"path", "string",
     "What the file beside the request is called in messages. Without it, and without a file, the "
     "snapshot is the one that the VM was prepared from.",
     true},
});
inline constexpr auto kTimelineFields = std::to_array<Field>({
    kVersion,
    {"steps", "array", "What was reached, in the order of time."},
    {"steps[].name", "string",
     "process_start, config_parsed, kvm_ready, memory_ready, kernel_loaded, devices_ready, "
     "load, first_entry, ready, end, or guest_mark:N for a byte N that the guest wrote."},
    {"steps[].at_us", "integer", "Microseconds since the process started."},
    {"steps[].cpu_us", "integer", "CPU time of the process until then."},
});
inline constexpr auto kProfileFields = std::to_array<Field>({
    kVersion,
    {"vcpus", "array", "As in stats, with all fields."},
    {"kvm", "object", "As in stats."},
    {"phases", "array", "One object for each phase: the time between two marks of the guest."},
    {"phases[].phase", "integer", "Its number, from 0."},
    {"phases[].pages_touched", "integer", "Pages of guest memory that were first touched in it."},
    {"guest_steps", "array",
     "Init functions of a Linux guest whose command line has initcall_debug."},
    {"guest_steps[].name", "string", "The function."},
    {"guest_steps[].duration_us", "integer", "Microseconds that it took, by the guest's clock."},
});
inline constexpr auto kDoctorFields = std::to_array<Field>({
    kVersion,
    {"vireo", "string", "The version of vireo."},
    {"can_run", "boolean", "Whether VMs can run here."},
    {"findings", "array", "One object for each check; every id is there on every host."},
    {"findings[].section", "string", "system, kvm, io_uring, memory, network, limits or sandbox."},
    {"findings[].id", "string", "The name of the check, which stays the same."},
    {"findings[].title", "string", "What was looked at, for people."},
    {"findings[].state", "string", "ok, lacking, or unknown where it could not be found out."},
    {"findings[].value", "string", "What was found, for people."},
    {"findings[].number", "integer or null", "The same as a number, where it is one."},
    {"findings[].cost", "string", "Of a lack: what a VM misses. Else empty."},
    {"findings[].remedy", "string", "Of a lack: how to mend it. Else empty."},
});
inline constexpr auto kDiskFields = std::to_array<Field>({
    kVersion,
    {"size_bytes", "integer", "Of the disk that a guest sees."},
    {"written_bytes", "integer", "Of the blocks that are the overlay's own."},
    {"allocated_bytes", "integer", "Room that the file takes."},
    {"cloned", "boolean", "Whether it holds all of its base, as a reflink."},
    {"base", "object", "What it lies over."},
    {"base.path", "string", "Where that was when a VM last made or changed it."},
    {"base.size_bytes", "integer", "Its size then."},
    {"base.format", "string", "raw, or overlay: one that a snapshot froze."},
});
inline constexpr auto kSnapshotInfoFields = std::to_array<Field>({
    kVersion,
    {"format_version", "integer", "Of the file."},
    {"kind", "string", "full or diff."},
    {"uuid", "string", "Of the snapshot."},
    {"parent", "string or null", "Of a diff: the UUID of the one that it is to."},
    {"created", "string", "RFC 3339, in UTC."},
    {"compressed", "boolean", "Whether memory is."},
    {"sealed", "boolean", "Whether nobody can write to it (fs-verity)."},
    {"memory_bytes", "integer", "Of the guest."},
    {"data_bytes", "integer", "Of these, what the file has."},
    {"stored_bytes", "integer", "What that takes in the file."},
    {"memory_file", "string or null", "Where memory is, if not in the file itself."},
    {"zero_bytes", "integer", "What is zero."},
    {"absent_bytes", "integer", "What is as in the parent."},
    {"sections", "array", "One object for each."},
    {"sections[].tag", "string", "What of the machine it is."},
    {"sections[].index", "integer", "Which of several."},
    {"sections[].version", "integer", "Of its content."},
    {"sections[].bytes", "integer", "Its size."},
});
inline constexpr auto kLogFields = std::to_array<Field>({
    {"time", "string", "RFC 3339, in UTC with microseconds."},
    {"level", "string", "trace, debug, info, warning or error."},
    {"component", "string", "The part of vireo that says it."},
    {"message", "string", "One line for people."},
    {"vm", "string", "name of the configuration.", true},
});

/// What stands under a heading of the page: a line "@fields NAME@" of vireo-json.7.in.
struct Object {
  std::string_view name;
  std::span<const Field> fields;
};

inline constexpr auto kObjects = std::to_array<Object>({
    {"error", kErrorFields},       {"status", kStatusFields},
    {"config", kConfigFields},     {"stats", kStatsFields},
    {"metrics", kMetricsFields},   {"events", kEventFields},
    {"state", kStateFields},       {"stop", kStopFields},
    {"drive", kDriveFields},       {"drive_state", kDriveStateFields},
    {"snapshot", kSnapshotFields}, {"snapshot_done", kSnapshotDoneFields},
    {"load", kLoadFields},         {"timeline", kTimelineFields},
    {"profile", kProfileFields},   {"doctor", kDoctorFields},
    {"disk", kDiskFields},         {"snapshot_info", kSnapshotInfoFields},
    {"log", kLogFields},
});

}  // namespace vireo::manual
