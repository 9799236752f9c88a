// SPDX-License-Identifier: Apache-2.0
#include "src/config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include <fmt/core.h>

#include "src/base/fd_path.h"

namespace vireo {

namespace {

struct DurationUnit {
  std::string_view name;
  std::uint64_t ns;
};
// From the longest down, so that the first one that divides gives the shortest text.
constexpr std::array<DurationUnit, 5> kDurationUnits = {{{"h", 3'600'000'000'000},
                                                         {"m", 60'000'000'000},
                                                         {"s", 1'000'000'000},
                                                         {"ms", 1'000'000},
                                                         {"us", 1'000}}};

}  // namespace

bool over_pci(const Config& config) {
  return config.machine.transport == Transport::kPci;
}

std::optional<std::uint64_t> parse_duration(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view suffix = text.substr(static_cast<std::size_t>(end - text.data()));
  const auto* const unit = std::ranges::find(kDurationUnits, suffix, &DurationUnit::name);
  std::uint64_t ns = 0;
  if (error != std::errc() || unit == kDurationUnits.end() ||
      __builtin_mul_overflow(number, unit->ns, &ns)) {
    return std::nullopt;
  }
  return ns;
}

std::string format_duration(std::uint64_t ns) {
  for (const DurationUnit& unit : kDurationUnits) {
    if (ns % unit.ns == 0 && ns > 0) {
      return fmt::format("{}{}", ns / unit.ns, unit.name);
    }
  }
  return fmt::format("{}us", ns / 1000);
}

std::optional<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end + 1 != text.data() + text.size()) {
    return std::nullopt;
  }
  constexpr std::string_view kSuffixes = "KMGT";
  const std::size_t power = kSuffixes.find(*end);
  if (power == std::string_view::npos) {
    return std::nullopt;
  }
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(number, std::uint64_t{1} << (10 * (power + 1)), &bytes)) {
    return std::nullopt;
  }
  return bytes;
}

std::string format_size(std::uint64_t bytes) {
  constexpr std::string_view kSuffixes = "KMGT";
  std::size_t power = 0;
  std::uint64_t number = bytes >> 10;
  while (power + 1 < kSuffixes.size() && number != 0 && number % 1024 == 0) {
    number /= 1024;
    ++power;
  }
  return fmt::format("{}{}", number, kSuffixes[power]);
}

arch::CpuTopology resolved_topology(const MachineConfig& machine) {
  return machine.topology.value_or(
      arch::CpuTopology{.sockets = 1, .cores = machine.cpus, .threads = 1});
}

namespace {

Result<> validate_rate_limit(const RateLimitConfig& limit, std::string_view key) {
  for (const auto& [name, bucket] :
       {std::pair("bandwidth", limit.bandwidth), std::pair("ops", limit.ops)}) {
    if (bucket && (bucket->size == 0 || bucket->refill_ns == 0)) {
      return fail(ErrorCode::kConfig, fmt::format("{}.{}: wants both size and refill", key, name));
    }
  }
  return {};
}

}  // namespace

Result<> validate(const Config& config) {
  if (config.rng) {
    TRY(validate_rate_limit(config.rng->rate_limit, "rng.rate_limit"));
  }
  if (config.boot.kernel.empty()) {
    return fail(ErrorCode::kConfig,
                "boot.kernel: missing; name a bzImage or an ELF vmlinux (--kernel PATH)");
  }
  const arch::CpuTopology topology = resolved_topology(config.machine);
  if (topology.sockets * topology.cores * topology.threads != config.machine.cpus) {
    return fail(
        ErrorCode::kConfig,
        fmt::format("machine.topology: {} sockets x {} cores x {} threads are not "
                    "machine.cpus = {}",
                    topology.sockets, topology.cores, topology.threads, config.machine.cpus));
  }
  const SerialMode mode = config.serial.mode;
  const bool wants_path = mode == SerialMode::kFile || mode == SerialMode::kUnix;
  if (wants_path == config.serial.path.empty()) {
    return fail(ErrorCode::kConfig,
                wants_path ? "serial.path: missing; modes file and unix want it"
                           : "serial.path: only modes file and unix take one; remove it");
  }
  if (config.serial.append && mode != SerialMode::kFile) {
    return fail(ErrorCode::kConfig, "serial.append: only mode file takes it; remove it");
  }
  if (config.serial.append && is_inherited(config.serial.path)) {
    return fail(ErrorCode::kConfig,
                "serial.append: whoever opened the descriptor has chosen it already; remove it");
  }
  if (mode == SerialMode::kNull && config.ready.when == ReadyConfig::When::kSerial) {
    return fail(ErrorCode::kConfig,
                "ready.when: waits for text on the console, and serial.mode = \"null\" has none; "
                "wait for a mark, or give the console another mode");
  }
  if (config.limits.cgroup.empty() && !config.limits.cgroup_files.empty()) {
    return fail(ErrorCode::kConfig, fmt::format("limits.cgroup: missing; {} is set in one",
                                                config.limits.cgroup_files.begin()->first));
  }
  const std::vector<std::vector<unsigned>>& affinity = config.limits.cpu_affinity;
  if (affinity.size() > 1 && affinity.size() != config.machine.cpus) {
    return fail(ErrorCode::kConfig,
                fmt::format("limits.cpu_affinity: {} lists for {} vCPUs; wants one for all, or one "
                            "for each",
                            affinity.size(), config.machine.cpus));
  }
  return {};
}

}  // namespace vireo
