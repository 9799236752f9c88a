// SPDX-License-Identifier: Apache-2.0
// A configuration as TOML and as JSON, every default filled in.
#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/config.h"
#include "src/toml.h"
#include "src/uuid.h"

namespace vireo {

namespace {

toml::table machine_table(const MachineConfig& machine) {
  constexpr std::array kHugePages = {"off", "transparent", "2M", "1G"};
  constexpr std::array kTransports = {"auto", "mmio", "pci"};
  const arch::CpuTopology topology = resolved_topology(machine);
  toml::array features;
  for (const std::string& feature : machine.cpu_features) {
    features.push_back(feature);
  }
  toml::table table{
      {"cpus", static_cast<std::int64_t>(machine.cpus)},
      {"topology", toml::table{{"sockets", static_cast<std::int64_t>(topology.sockets)},
                               {"cores", static_cast<std::int64_t>(topology.cores)},
                               {"threads", static_cast<std::int64_t>(topology.threads)}}},
      {"memory", format_size(machine.memory_bytes)},
      {"hugepages", kHugePages.at(std::to_underlying(machine.huge_pages))},
      {"mergeable", machine.mergeable},
      {"prefault", machine.prefault},
      {"cpu_features", features},
      {"transport", kTransports.at(std::to_underlying(machine.transport))},
      {"io_threads", static_cast<std::int64_t>(machine.io_threads)},
      {"on_reboot", machine.on_reboot == OnReboot::kExit ? "exit" : "restart"},
      {"track_dirty", machine.track_dirty},
  };
  if (machine.uuid) {
    table.insert("uuid", uuid_text(*machine.uuid));
  }
  return table;
}

toml::table boot_table(const BootOptions& boot) {
  toml::table table{
      {"kernel", boot.kernel},
      {"cache", boot.cache},
      {"unpack", boot.unpack ? "auto" : "off"},
      {"kaslr", boot.kaslr ? "auto" : "off"},
      {"append", boot.append},
  };
  if (!boot.initramfs.empty()) {
    table.insert("initramfs", boot.initramfs);
  }
  if (boot.cmdline) {
    table.insert("cmdline", *boot.cmdline);
  }
  return table;
}

std::string ready_when(const ReadyConfig& ready) {
  switch (ready.when) {
    case ReadyConfig::When::kStarted:
      return "started";
    case ReadyConfig::When::kSerial:
      return "serial:" + ready.text;
    case ReadyConfig::When::kMark:
      return fmt::format("mark:{}", ready.mark);
  }
  std::unreachable();
}

std::string cpu_list(const std::vector<unsigned>& cpus) {
  std::string text;
  for (std::size_t i = 0; i < cpus.size(); ++i) {
    std::size_t last = i;
    while (last + 1 < cpus.size() && cpus[last + 1] == cpus[last] + 1) {
      ++last;
    }
    text += text.empty() ? "" : ",";
    text += last == i ? fmt::format("{}", cpus[i]) : fmt::format("{}-{}", cpus[i], cpus[last]);
    i = last;
  }
  return text;
}

/// Numbers of cgroup files as their keys have them.
void add_cgroup_limits(toml::table& table, const std::map<std::string, std::string>& files) {
  for (const auto& [file, value] : files) {
    std::uint64_t number = 0;
    std::from_chars(value.data(), value.data() + value.size(), number);
    if (file == "memory.max") {
      table.insert("memory_max", format_size(number));
    } else if (file == "cpu.max") {
      table.insert("cpu_quota", fmt::format("{}%", number / 1000));
    } else if (file == "io.max") {
      table.insert("io_max", value);
    } else {
      table.insert(file == "cpu.weight" ? "cpu_weight" : "pids_max",
                   static_cast<std::int64_t>(number));
    }
  }
}

toml::table rate_limit_table(const RateLimitConfig& limit) {
  toml::table table;
  if (limit.bandwidth) {
    toml::table bucket{{"size", format_size(limit.bandwidth->size)},
                       {"refill", format_duration(limit.bandwidth->refill_ns)}};
    if (limit.bandwidth->burst > 0) {
      bucket.insert("burst", format_size(limit.bandwidth->burst));
    }
    table.insert("bandwidth", bucket);
  }
  if (limit.ops) {
    toml::table bucket{{"size", static_cast<std::int64_t>(limit.ops->size)},
                       {"refill", format_duration(limit.ops->refill_ns)}};
    if (limit.ops->burst > 0) {
      bucket.insert("burst", static_cast<std::int64_t>(limit.ops->burst));
    }
    table.insert("ops", bucket);
  }
  return table;
}

toml::table limits_table(const LimitsConfig& limits) {
  toml::table table{{"core_scheduling", limits.core_scheduling}};
  toml::array affinity;
  for (const std::vector<unsigned>& cpus : limits.cpu_affinity) {
    affinity.push_back(cpu_list(cpus));
  }
  if (!affinity.empty()) {
    table.insert("cpu_affinity", affinity);
  }
  if (!limits.cgroup.empty()) {
    table.insert("cgroup", limits.cgroup);
  }
  add_cgroup_limits(table, limits.cgroup_files);
  toml::table rlimits;
  const auto text = [](std::uint64_t limit) {
    return limit == ~std::uint64_t{0} ? std::string("unlimited") : fmt::format("{}", limit);
  };
  for (const auto& [name, limit] : limits.rlimits) {
    rlimits.insert(name, fmt::format("{}:{}", text(limit.soft), text(limit.hard)));
  }
  if (!rlimits.empty()) {
    table.insert("rlimits", rlimits);
  }
  return table;
}

void add_text(toml::table& table, std::string_view key, const std::string& text) {
  if (!text.empty()) {
    table.insert(key, text);
  }
}

toml::table disk_table(const DiskConfig& disk) {
  constexpr std::array kCaches = {"writeback", "unsafe"};
  toml::table table{{"id", disk.id},         {"path", disk.path},
                    {"root", disk.root},     {"readonly", disk.readonly},
                    {"direct", disk.direct}, {"cache", kCaches.at(std::to_underlying(disk.cache))}};
  if (disk.queues == 0) {
    table.insert("queues", "cpus");
  } else {
    table.insert("queues", static_cast<std::int64_t>(disk.queues));
  }
  add_text(table, "partuuid", disk.partuuid);
  add_text(table, "overlay", disk.overlay);
  constexpr std::array kBaseFormats = {"", "raw", "overlay"};
  add_text(table, "base_format", kBaseFormats.at(std::to_underlying(disk.base_format)));
  if (toml::table limit = rate_limit_table(disk.rate_limit); !limit.empty()) {
    table.insert("rate_limit", limit);
  }
  return table;
}

void add_disks(toml::table& root, const Config& config) {
  toml::array disks;
  for (const DiskConfig& disk : config.disks) {
    disks.push_back(disk_table(disk));
  }
  toml::array volumes;
  for (const VolumeConfig& volume : config.volumes) {
    volumes.push_back(toml::table{
        {"id", volume.id}, {"path", volume.path}, {"size", format_size(volume.size_bytes)}});
  }
  if (!disks.empty()) {
    root.insert("disk", disks);
  }
  if (!volumes.empty()) {
    root.insert("volume", volumes);
  }
  if (const std::optional<CloudInitConfig>& cloud_init = config.cloud_init) {
    toml::table table;
    add_text(table, "seed", cloud_init->seed);
    add_text(table, "user_data", cloud_init->user_data);
    add_text(table, "meta_data", cloud_init->meta_data);
    add_text(table, "network_config", cloud_init->network_config);
    root.insert("cloud_init", table);
  }
}

toml::table sandbox_table(const SandboxConfig& sandbox) {
  toml::array paths;
  for (const std::string& path : sandbox.allow_paths) {
    paths.push_back(path);
  }
  return toml::table{{"enabled", sandbox.enabled}, {"allow_paths", paths}};
}

toml::table to_table(const Config& config) {
  constexpr std::array kModes = {"stdio", "file", "pty", "unix", "null"};
  constexpr std::array kLevels = {"trace", "debug", "info", "warn", "error", "off"};
  toml::table labels;
  for (const auto& [key, text] : config.labels) {
    labels.insert(key, text);
  }
  toml::table serial{{"mode", kModes.at(std::to_underlying(config.serial.mode))},
                     {"append", config.serial.append}};
  toml::table process{{"boot_timer", config.process.boot_timer}};
  toml::table log{{"level", kLevels.at(std::to_underlying(config.log.level))},
                  {"format", config.log.format == LogFormat::kText ? "text" : "json"}};
  add_text(serial, "path", config.serial.path);
  add_text(process, "pid_file", config.process.pid_file);
  add_text(process, "notify", config.process.notify);
  add_text(process, "timeline", config.process.timeline);
  add_text(process, "profile", config.process.profile);
  add_text(log, "file", config.log.file);
  toml::table root{{"machine", machine_table(config.machine)},
                   {"boot", boot_table(config.boot)},
                   {"serial", serial},
                   {"process", process},
                   {"log", log},
                   {"ready", toml::table{{"when", ready_when(config.ready)},
                                         {"timeout", format_duration(config.ready.timeout_ns)}}},
                   {"sandbox", sandbox_table(config.sandbox)},
                   {"limits", limits_table(config.limits)}};
  if (config.rng) {
    toml::table rng;
    if (toml::table limit = rate_limit_table(config.rng->rate_limit); !limit.empty()) {
      rng.insert("rate_limit", limit);
    }
    root.insert("rng", rng);
  }
  add_disks(root, config);
  if (!config.control_path.empty()) {
    root.insert("control", toml::table{{"path", config.control_path}});
  }
  if (!config.metrics_path.empty()) {
    root.insert("metrics", toml::table{{"path", config.metrics_path}});
  }
  add_text(root, "name", config.name);
  add_text(root, "namespace", config.namespace_label);
  if (!labels.empty()) {
    root.insert("labels", labels);
  }
  return root;
}

}  // namespace

std::string to_toml(const Config& config) {
  std::ostringstream text;
  // Strings of the other kinds lose a line feed that they begin with.
  using Flags = toml::format_flags;
  text << toml::toml_formatter(to_table(config), toml::toml_formatter::default_flags &
                                                     ~(Flags::allow_literal_strings |
                                                       Flags::allow_multi_line_strings))
       << '\n';
  return text.str();
}

std::string to_json(const Config& config) {
  std::ostringstream text;
  text << toml::json_formatter(to_table(config));
  return text.str();
}

std::string first_difference(const Config& one, const Config& other) {
  using Json = nlohmann::json;
  const Json differences = Json::diff(Json::parse(to_json(one)), Json::parse(to_json(other)));
  if (differences.empty()) {
    return {};
  }
  std::string key = differences.front()["path"].get<std::string>().substr(1);
  std::ranges::replace(key, '/', '.');
  return key;
}

}  // namespace vireo
