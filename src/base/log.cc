// SPDX-License-Identifier: Apache-2.0
#include "src/base/log.h"

#include <memory>

#include <time.h>

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace vireo {

bool log_enabled(LogLevel level) {
  return spdlog::should_log(static_cast<spdlog::level::level_enum>(level));
}

void write_log(LogLevel level, std::string_view component, std::string_view message) {
  spdlog::log(static_cast<spdlog::level::level_enum>(level), "{}: {}", component, message);
}

std::uint64_t monotonic_ns() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

bool LogLimiter::allow(std::uint64_t now_ns, std::uint64_t& dropped) {
  (void)now_ns;
  dropped = 0;
  return true;
}

Result<> open_log(const LogConfig&) {
  return {};
}
Result<> reopen_log() {
  return {};
}

}  // namespace vireo
