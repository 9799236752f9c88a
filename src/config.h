// SPDX-License-Identifier: Apache-2.0
// What a VM shall be: plain structs, read from TOML and from command-line options through one set
// of rules, so that both refuse the same things with the same words. Opens nothing but the TOML
// file.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arch/arch.h"
#include "devices/legacy/console.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/disk_config.h"
#include "src/io/rate_limiter.h"
#include "src/limits.h"
#include "src/memory/guest_memory.h"

namespace vireo {

/// How the guest reaches virtio devices; auto: as the machine finds best.
enum class Transport : std::uint8_t { kAuto, kMmio, kPci };

enum class OnReboot : std::uint8_t { kExit, kRestart };

struct MachineConfig {
  unsigned cpus = 1;
  std::optional<arch::CpuTopology> topology;
  std::uint64_t memory_bytes = std::uint64_t{512} << 20;
  HugePages huge_pages = HugePages::kOff;
  bool mergeable = false;
  bool prefault = false;
  std::optional<std::array<std::uint8_t, 16>> uuid;
  std::vector<std::string> cpu_features;
  Transport transport = Transport::kAuto;
  unsigned io_threads = 0;  ///< further threads that serve queues
  OnReboot on_reboot = OnReboot::kExit;
  bool track_dirty = false;  ///< KVM notes what changes from the first snapshot on, for diffs
};

struct BootOptions {
  std::string kernel;
  std::string initramfs;
  std::string cache = "auto";  ///< auto, off, or a directory
  bool unpack = true;
  bool kaslr = true;
  std::optional<std::string> cmdline;  ///< replaces the default
  std::string append;
};

/// What makes the VM ready.
struct ReadyConfig {
  enum class When : std::uint8_t {
    kStarted,  ///< its first instruction
    kSerial,   ///< `text` on the console
    kMark,     ///< the byte `mark` on the mark port
  };
  When when = When::kStarted;
  std::string text;
  std::uint8_t mark = 0;
  std::uint64_t timeout_ns = 30'000'000'000;
};

struct RngConfig {
  RateLimitConfig rate_limit;
};

struct SandboxConfig {
  bool enabled = true;
  std::vector<std::string> allow_paths;  ///< absolute; see src/allowed_paths.h
};

struct ProcessConfig {
  std::string pid_file;
  std::string notify;  ///< fd:N, one byte when ready
  std::string timeline;
  std::string profile;
  bool boot_timer = false;
};

struct Config {
  std::string name;
  std::string namespace_label;
  std::map<std::string, std::string> labels;
  MachineConfig machine;
  BootOptions boot;
  ConsoleConfig serial;
  ReadyConfig ready;
  ProcessConfig process;
  LogConfig log;
  SandboxConfig sandbox;
  LimitsConfig limits;
  std::optional<RngConfig> rng;  ///< none: the guest has no such device
  std::vector<DiskConfig> disks;
  std::vector<VolumeConfig> volumes;
  std::optional<CloudInitConfig> cloud_init;
  std::string control_path;
  std::string metrics_path;
};

/// Reads `path` (or fd:N) into `config`, over what is there. Errors: kMissingInput, kPermission,
/// and kConfig with "path:line: key: what is wrong and what would be right".
Result<> read_config_file(const std::string& path, Config& config);

/// The same for a file's text; `path` is for messages.
Result<> read_config_text(std::string_view text, const std::string& path, Config& config);

/// Sets one key from an option's text. Errors: kUsage, beginning with the option's name.
Result<> set_config_option(Config& config, std::string_view key, std::string_view option,
                           std::string_view text);

/// Sets keys of one table (of a new one, where there may be several) from a device option's text,
/// "key=value,…": a word without = is a flag, and ",," a comma within a value. `first`: the key of
/// a first word without =, where it has one.
/// Errors: kUsage, beginning with the option's name.
Result<> set_table_option(Config& config, std::string_view table, std::string_view option,
                          std::string_view text, std::string_view first = {});

/// Checks what concerns several keys at once; to be called when all have been set.
Result<> validate(const Config& config);

/// The resolved configuration as TOML, every default filled in. Reading it gives the same.
std::string to_toml(const Config& config);

/// The same as JSON.
std::string to_json(const Config& config);

/// The key of the first setting in which they differ, such as disk.0.path; empty: they do not.
std::string first_difference(const Config& one, const Config& other);

/// Whether the machine has a PCI bus with its virtio devices on it. Of transport = "auto": where a
/// device has several queues, or there are more than interrupt lines.
bool over_pci(const Config& config);
/// Whether the guest looks for ACPI's tables: its command line does not say acpi=off.
bool has_acpi(const Config& config);
std::size_t virtio_device_count(const Config& config);
/// How many queues the disk has in this machine.
unsigned resolved_queues(const DiskConfig& disk, const MachineConfig& machine);

/// sockets × cores × threads: what is configured, or one socket of single-threaded cores.
arch::CpuTopology resolved_topology(const MachineConfig& machine);

/// "512M" in bytes; a number with one of K, M, G, T behind it.
std::optional<std::uint64_t> parse_size(std::string_view text);
/// The shortest text that parse_size() reads back.
std::string format_size(std::uint64_t bytes);
/// "250ms" in nanoseconds; a number with one of us, ms, s, m, h behind it.
std::optional<std::uint64_t> parse_duration(std::string_view text);
/// The shortest text that parse_duration() reads back; whole microseconds.
std::string format_duration(std::uint64_t ns);

}  // namespace vireo
