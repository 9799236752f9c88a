// SPDX-License-Identifier: Apache-2.0
#include "src/config_keys.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "src/base/fd_path.h"
#include "src/config_disks.h"
#include "src/config_limits.h"
#include "src/config_rate_limit.h"
#include "src/manual/keys.h"
#include "src/uuid.h"

namespace vireo {

namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kMemoryMin = 32 * kMiB;
constexpr std::uint64_t kMemoryMax = std::uint64_t{1} << 40;
constexpr unsigned kCpusMax = 64;
constexpr unsigned kIoThreadsMax = 64;

// Setters for plain members.
template <auto Member, auto Section>
Result<> set_text(const ConfigValue& value, Config& config) {
  TRY_ASSIGN((config.*Section).*Member, value.string());
  return {};
}
template <auto Member, auto Section>
Result<> set_path(const ConfigValue& value, Config& config) {
  TRY_ASSIGN((config.*Section).*Member, value.path());
  return {};
}
template <auto Member, auto Section>
Result<> set_flag(const ConfigValue& value, Config& config) {
  TRY_ASSIGN((config.*Section).*Member, value.boolean());
  return {};
}

constexpr std::size_t kLabelMax = 128;
constexpr std::string_view kLabelRule =
    "wants 1 to 128 of A-Z a-z 0-9 . _ -, beginning with none of . -";

Result<> set_name(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.name, value.string());
  return is_label(config.name, kLabelMax) ? Result<>() : value.wrong(kLabelRule);
}

Result<> set_namespace(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.namespace_label, value.string());
  return is_label(config.namespace_label, kLabelMax) ? Result<>() : value.wrong(kLabelRule);
}

Result<> set_labels(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.labels, value.text_table());
  return {};
}

Result<> set_cpus(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::int64_t cpus, value.integer(1, kCpusMax));
  config.machine.cpus = static_cast<unsigned>(cpus);
  return {};
}

template <unsigned arch::CpuTopology::* Member>
Result<> set_topology(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::int64_t count, value.integer(1, kCpusMax));
  if (!config.machine.topology) {
    config.machine.topology.emplace();
  }
  (*config.machine.topology).*Member = static_cast<unsigned>(count);
  return {};
}

Result<> set_memory(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::uint64_t bytes, value.size());
  if (bytes < kMemoryMin || bytes > kMemoryMax || bytes % kMiB != 0) {
    return value.wrong(
        fmt::format("{} is out of range: wants whole MiB from 32M to 1T", format_size(bytes)));
  }
  config.machine.memory_bytes = bytes;
  return {};
}

Result<> set_huge_pages(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"off", "transparent", "2M", "1G"}));
  config.machine.huge_pages = static_cast<HugePages>(index);
  return {};
}

Result<> set_transport(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"auto", "mmio", "pci"}));
  config.machine.transport = static_cast<Transport>(index);
  return {};
}

Result<> set_uuid(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::string text, value.string());
  const std::optional<Uuid> uuid = parse_uuid(text);
  if (!uuid) {
    return value.wrong("wants a UUID such as \"8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2d\"");
  }
  config.machine.uuid = uuid;
  return {};
}

Result<> set_cpu_features(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.machine.cpu_features, value.texts());
  for (const std::string& feature : config.machine.cpu_features) {
    if (feature.size() < 2 || (feature[0] != '-' && feature[0] != '+')) {
      return value.wrong(quoted(feature) +
                         ": wants \"-name\" to mask a feature or \"+name\" to insist on one");
    }
  }
  return {};
}

Result<> set_io_threads(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::int64_t count, value.integer(0, kIoThreadsMax));
  config.machine.io_threads = static_cast<unsigned>(count);
  return {};
}

template <bool BootOptions::* Member>
Result<> set_auto_off(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"auto", "off"}));
  config.boot.*Member = index == 0;
  return {};
}

Result<> set_cache(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.boot.cache, value.path());  // or one of two words
  return {};
}

Result<> set_cmdline(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.boot.cmdline, value.string());
  return {};
}

Result<> set_serial_mode(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"stdio", "file", "pty", "unix", "null"}));
  config.serial.mode = static_cast<SerialMode>(index);
  return {};
}

Result<> set_log_level(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index,
             value.word({"trace", "debug", "info", "warn", "error", "off"}));
  config.log.level = static_cast<LogLevel>(index);
  return {};
}

Result<> set_log_format(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"text", "json"}));
  config.log.format = static_cast<LogFormat>(index);
  return {};
}

Result<> set_on_reboot(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"exit", "restart"}));
  config.machine.on_reboot = static_cast<OnReboot>(index);
  return {};
}

Result<> set_ready_when(const ConfigValue& value, Config& config) {
  constexpr std::string_view kSerial = "serial:";
  constexpr std::string_view kMark = "mark:";
  TRY_ASSIGN(const std::string text, value.string());
  ReadyConfig& ready = config.ready;
  if (text == "started") {
    ready.when = ReadyConfig::When::kStarted;
    return {};
  }
  if (text == "agent") {
    return value.wrong("\"agent\" is not yet supported; serial:TEXT and mark:N are");
  }
  if (text.starts_with(kSerial) && text.size() > kSerial.size()) {
    ready.when = ReadyConfig::When::kSerial;
    ready.text = text.substr(kSerial.size());
    return {};
  }
  const char* const last = text.data() + text.size();
  if (text.starts_with(kMark)) {
    const auto [end, error] = std::from_chars(text.data() + kMark.size(), last, ready.mark);
    if (error == std::errc() && end == last) {
      ready.when = ReadyConfig::When::kMark;
      return {};
    }
  }
  return value.wrong(
      fmt::format("{}: wants started, serial:TEXT, or mark:N with N from 0 to 255", quoted(text)));
}

Result<> set_ready_timeout(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.ready.timeout_ns, value.duration());
  return config.ready.timeout_ns > 0 ? Result<>() : value.wrong("wants a duration above 0");
}

Result<> set_notify(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.process.notify, value.path());
  return is_inherited(config.process.notify)
             ? Result<>()
             : value.wrong("wants an inherited descriptor: fd:N, or fd:NAME of LISTEN_FDNAMES");
}

Result<> set_control(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.control_path, value.path());
  return {};
}

Result<> set_metrics(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.metrics_path, value.path());
  return {};
}

Result<> add_allow_paths(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const ConfigValue::Texts paths, value.text_or_texts());
  for (const std::string& path : paths) {
    if (!path.starts_with('/')) {
      return value.wrong(fmt::format("{}: wants absolute paths", quoted(path)));
    }
    config.sandbox.allow_paths.push_back(path);
  }
  return {};
}

/// [rng], or --rng: the device itself.
Result<> set_rng(const ConfigValue& /*value*/, Config& config) {
  if (!config.rng) {
    config.rng.emplace();
  }
  return {};
}

RateLimitConfig& rng_limit(Config& config) {
  return config.rng->rate_limit;
}

constexpr auto kKeysOfNow = std::to_array<ConfigKey>({
    {"name", set_name},
    {"namespace", set_namespace},
    {"labels", set_labels},
    {"machine.cpus", set_cpus},
    {"machine.topology.sockets", set_topology<&arch::CpuTopology::sockets>},
    {"machine.topology.cores", set_topology<&arch::CpuTopology::cores>},
    {"machine.topology.threads", set_topology<&arch::CpuTopology::threads>},
    {"machine.memory", set_memory},
    {"machine.hugepages", set_huge_pages},
    {"machine.mergeable", set_flag<&MachineConfig::mergeable, &Config::machine>},
    {"machine.prefault", set_flag<&MachineConfig::prefault, &Config::machine>},
    {"machine.uuid", set_uuid},
    {"machine.cpu_features", set_cpu_features},
    {"machine.transport", set_transport},
    {"machine.io_threads", set_io_threads},
    {"machine.on_reboot", set_on_reboot},
    {"machine.track_dirty", set_flag<&MachineConfig::track_dirty, &Config::machine>},
    {"boot.kernel", set_path<&BootOptions::kernel, &Config::boot>},
    {"boot.initramfs", set_path<&BootOptions::initramfs, &Config::boot>},
    {"boot.cache", set_cache},
    {"boot.unpack", set_auto_off<&BootOptions::unpack>},
    {"boot.kaslr", set_auto_off<&BootOptions::kaslr>},
    {"boot.cmdline", set_cmdline},
    {"boot.append", set_text<&BootOptions::append, &Config::boot>},
    {"serial.mode", set_serial_mode},
    {"serial.path", set_path<&ConsoleConfig::path, &Config::serial>},
    {"serial.append", set_flag<&ConsoleConfig::append, &Config::serial>},
    {"process.pid_file", set_path<&ProcessConfig::pid_file, &Config::process>},
    {"process.timeline", set_path<&ProcessConfig::timeline, &Config::process>},
    {"process.profile", set_path<&ProcessConfig::profile, &Config::process>},
    {"process.boot_timer", set_flag<&ProcessConfig::boot_timer, &Config::process>},
    {"process.notify", set_notify},
    {"log.level", set_log_level},
    {"log.format", set_log_format},
    {"log.file", set_path<&LogConfig::file, &Config::log>},
    {"ready.when", set_ready_when},
    {"ready.timeout", set_ready_timeout},
    {"limits.cpu_affinity", set_cpu_affinity},
    {"limits.core_scheduling", set_core_scheduling},
    {"limits.cgroup", set_cgroup},
    {"limits.memory_max", set_memory_max},
    {"limits.cpu_quota", set_cpu_quota},
    {"limits.cpu_weight", set_cpu_weight},
    {"limits.pids_max", set_pids_max},
    {"limits.io_max", set_io_max},
    {"limits.rlimits", set_rlimits},
    {"rng", set_rng, ConfigKey::Kind::kTable},
    {"rng.rate_limit.bandwidth.size", set_tokens<rng_limit, kBandwidth, &TokenBucketConfig::size>},
    {"rng.rate_limit.bandwidth.refill", set_refill<rng_limit, kBandwidth>},
    {"rng.rate_limit.bandwidth.burst",
     set_tokens<rng_limit, kBandwidth, &TokenBucketConfig::burst>},
    {"rng.rate_limit.ops.size", set_tokens<rng_limit, kOps, &TokenBucketConfig::size>},
    {"rng.rate_limit.ops.refill", set_refill<rng_limit, kOps>},
    {"rng.rate_limit.ops.burst", set_tokens<rng_limit, kOps, &TokenBucketConfig::burst>},
    {"disk", add_disk, ConfigKey::Kind::kTables},
    {"disk.id", set_disk_id},
    {"disk.path", set_disk_path},
    {"disk.root", set_disk_root},
    {"disk.partuuid", set_disk_partuuid},
    {"disk.readonly", set_disk_readonly},
    {"disk.direct", set_disk_direct},
    {"disk.cache", set_disk_cache},
    {"disk.queues", set_disk_queues},
    {"disk.overlay", set_disk_overlay},
    {"disk.base_format", set_disk_base_format},
    {"disk.rate_limit.bandwidth.size",
     set_tokens<disk_limit, kBandwidth, &TokenBucketConfig::size>},
    {"disk.rate_limit.bandwidth.refill", set_refill<disk_limit, kBandwidth>},
    {"disk.rate_limit.bandwidth.burst",
     set_tokens<disk_limit, kBandwidth, &TokenBucketConfig::burst>},
    {"disk.rate_limit.ops.size", set_tokens<disk_limit, kOps, &TokenBucketConfig::size>},
    {"disk.rate_limit.ops.refill", set_refill<disk_limit, kOps>},
    {"disk.rate_limit.ops.burst", set_tokens<disk_limit, kOps, &TokenBucketConfig::burst>},
    {"volume", add_volume, ConfigKey::Kind::kTables},
    {"volume.id", set_volume_id},
    {"volume.path", set_volume_path},
    {"volume.size", set_volume_size},
    {"cloud_init", set_cloud_init, ConfigKey::Kind::kTable},
    {"cloud_init.seed", set_seed},
    {"cloud_init.user_data", set_user_data},
    {"cloud_init.meta_data", set_meta_data},
    {"cloud_init.network_config", set_network_config},
    {"control.path", set_control},
    {"metrics.path", set_metrics},
    {"sandbox.enabled", set_flag<&SandboxConfig::enabled, &Config::sandbox>},
    {"sandbox.allow_paths", add_allow_paths, ConfigKey::Kind::kList},
});
static_assert(std::ranges::equal(kKeysOfNow, manual::kKeys, {}, &ConfigKey::path,
                                 &manual::Key::path),
              "src/manual/keys.h tells of each key of the table above, in its order");

constexpr auto kKeysOfLater = std::to_array<ConfigKey>({{"volume.guest_path"},
                                                        {"net"},
                                                        {"port"},
                                                        {"vsock"},
                                                        {"fs"},
                                                        {"balloon"},
                                                        {"guest"},
                                                        {"file"},
                                                        {"limits.guest_pids"},
                                                        {"limits.netns"}});

constexpr auto kKeys = [] {
  std::array<ConfigKey, kKeysOfNow.size() + kKeysOfLater.size()> all = {};
  std::ranges::copy(kKeysOfLater, std::ranges::copy(kKeysOfNow, all.begin()).out);
  return all;
}();

/// Longer names are no slips of the pen: no key is looked for that is like them.
constexpr std::size_t kHintMax = 64;
/// A wrong, a missing and an exchanged letter are slips; more is another word.
constexpr std::size_t kHintDistance = 2;

std::size_t edit_distance(std::string_view left, std::string_view right) {
  std::vector<std::size_t> row(right.size() + 1);
  for (std::size_t j = 0; j <= right.size(); ++j) {
    row[j] = j;
  }
  for (std::size_t i = 1; i <= left.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= right.size(); ++j) {
      const std::size_t replace = diagonal + (left[i - 1] == right[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replace, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[right.size()];
}

}  // namespace

std::span<const ConfigKey> config_keys() {
  return kKeys;
}

const ConfigKey* find_config_key(std::string_view path) {
  const auto* const found = std::ranges::find(kKeys, path, &ConfigKey::path);
  return found == kKeys.end() ? nullptr : found;
}

bool is_config_table(std::string_view path) {
  return std::ranges::any_of(kKeys, [path](const ConfigKey& key) {
    return key.path.size() > path.size() && key.path.starts_with(path) &&
           key.path[path.size()] == '.';
  });
}

std::string unknown_key(std::string_view path, std::string_view table) {
  std::string text = "unknown key " + quoted(path.substr(table.size()));
  if (path.size() > kHintMax) {
    return text;
  }
  const auto distance = [path, table](const ConfigKey& key) {
    return key.path.starts_with(table) ? edit_distance(key.path, path) : kHintMax;
  };
  const auto closest = std::ranges::min_element(config_keys(), {}, distance);
  if (distance(*closest) <= kHintDistance) {
    text += fmt::format("; did you mean \"{}\"?", closest->path.substr(table.size()));
  }
  return text;
}

}  // namespace vireo
