// SPDX-License-Identifier: Apache-2.0
#include "src/config.h"

#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/core.h>

#include "arch/x86_64/layout.h"
#include "boot/boot_params.h"

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
  if (config.machine.transport != Transport::kAuto) {
    return config.machine.transport == Transport::kPci;
  }
  return has_acpi(config) && (virtio_device_count(config) > layout::kDeviceGsis ||
                              std::ranges::any_of(config.disks, [&config](const DiskConfig& disk) {
                                return resolved_queues(disk, config.machine) > 1;
                              }));
}

bool has_acpi(const Config& config) {
  return !has_word(config.boot.cmdline.value_or(""), "acpi=off") &&
         !has_word(config.boot.append, "acpi=off");
}

std::size_t virtio_device_count(const Config& config) {
  return config.disks.size() + config.volumes.size() + (config.cloud_init ? 1 : 0) +
         (config.rng ? 1 : 0);
}

unsigned resolved_queues(const DiskConfig& disk, const MachineConfig& machine) {
  return disk.queues == 0 ? machine.cpus : disk.queues;
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

}  // namespace vireo
