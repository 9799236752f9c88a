// SPDX-License-Identifier: Apache-2.0
#include "src/config_limits.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <vector>

#include <fmt/core.h>

#include "src/base/fd_path.h"

namespace vireo {

namespace {

/// As many processors as a cpu_set_t has.
constexpr unsigned kHostCpusMax = 1024;
constexpr std::uint64_t kUnlimited = ~std::uint64_t{0};  // RLIM_INFINITY

/// "0-3,8" as the processors it means, each once and in order.
std::optional<std::vector<unsigned>> parse_cpu_list(std::string_view text) {
  std::vector<unsigned> cpus;
  const auto number = [&text](unsigned& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return error == std::errc() && value < kHostCpusMax;
  };
  for (;;) {
    unsigned first = 0;
    if (!number(first)) {
      return std::nullopt;
    }
    unsigned last = first;
    if (text.starts_with('-')) {
      text.remove_prefix(1);
      if (!number(last) || last < first) {
        return std::nullopt;
      }
    }
    for (unsigned cpu = first; cpu <= last; ++cpu) {
      cpus.push_back(cpu);
    }
    if (text.empty()) {
      break;
    }
    if (!text.starts_with(',')) {
      return std::nullopt;
    }
    text.remove_prefix(1);
  }
  std::ranges::sort(cpus);
  const auto repeated = std::ranges::unique(cpus);
  cpus.erase(repeated.begin(), repeated.end());
  return cpus;
}

}  // namespace

Result<> set_cpu_affinity(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::vector<std::string> lists, value.text_or_texts());
  config.limits.cpu_affinity.clear();
  for (const std::string& list : lists) {
    const std::optional<std::vector<unsigned>> cpus = parse_cpu_list(list);
    if (!cpus) {
      return value.wrong(fmt::format(
          "{}: wants processors such as \"0-3,8\", or one such text for each vCPU", quoted(list)));
    }
    config.limits.cpu_affinity.push_back(*cpus);
  }
  return {};
}

Result<> set_core_scheduling(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.limits.core_scheduling, value.boolean());
  return {};
}

Result<> set_cgroup(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.limits.cgroup, value.path());
  const std::string& path = config.limits.cgroup;
  const bool dots = ("/" + path + "/").find("/../") != std::string::npos ||
                    ("/" + path + "/").find("/./") != std::string::npos;
  return path.ends_with('/') || is_inherited(path) || dots
             ? value.wrong(quoted(path) + ": wants a cgroup such as \"machine.slice/web-1\"")
             : Result<>();
}

Result<> set_memory_max(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::uint64_t bytes, value.size());
  config.limits.cgroup_files["memory.max"] = fmt::format("{}", bytes);
  return {};
}

Result<> set_cpu_quota(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::string text, value.string());
  constexpr unsigned kPeriodUs = 100'000;
  unsigned percent = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), percent);
  if (error != std::errc() || std::string_view(end, text.data() + text.size()) != "%" ||
      percent == 0 || percent > 100 * kHostCpusMax) {
    return value.wrong(quoted(text) + ": wants a share of one processor, such as \"150%\"");
  }
  config.limits.cgroup_files["cpu.max"] =
      fmt::format("{} {}", percent * (kPeriodUs / 100), kPeriodUs);
  return {};
}

Result<> set_cpu_weight(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::int64_t weight, value.integer(1, 10'000));
  config.limits.cgroup_files["cpu.weight"] = fmt::format("{}", weight);
  return {};
}

Result<> set_pids_max(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::int64_t count, value.integer(1, 4'194'304));
  config.limits.cgroup_files["pids.max"] = fmt::format("{}", count);
  return {};
}

Result<> set_io_max(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::string text, value.string());
  const std::size_t colon = text.find(':');
  const std::size_t space = text.find(' ');
  if (colon == std::string::npos || space == std::string::npos || colon > space ||
      text.find_first_not_of("0123456789:") != space || text.find('\n') != std::string::npos) {
    return value.wrong(quoted(text) +
                       ": wants a device and its limits, such as \"259:0 rbps=1048576 wiops=100\"");
  }
  config.limits.cgroup_files["io.max"] = text;
  return {};
}

Result<> set_rlimits(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const ConfigValue::TextTable table, value.text_table());
  config.limits.rlimits.clear();
  for (const auto& [name, text] : table) {
    if (resource_number(name) < 0) {
      return value.wrong(fmt::format("{} is not one of {}", quoted(name), resource_names()));
    }
    const auto number = [](std::string_view part) -> std::optional<std::uint64_t> {
      if (part == "unlimited") {
        return kUnlimited;
      }
      std::uint64_t limit = 0;
      const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), limit);
      const bool whole = error == std::errc() && end == part.data() + part.size();
      return whole ? std::optional(limit) : std::nullopt;
    };
    const std::size_t colon = text.find(':');
    const auto soft = number(std::string_view(text).substr(0, colon));
    const auto hard =
        colon == std::string::npos ? soft : number(std::string_view(text).substr(colon + 1));
    if (!soft || !hard || *soft > *hard) {
      return value.wrong(
          fmt::format("{} = {}: wants \"SOFT:HARD\" or one number for both, or "
                      "unlimited",
                      name, quoted(text)));
    }
    config.limits.rlimits[name] = {.soft = *soft, .hard = *hard};
  }
  return {};
}

}  // namespace vireo
