// SPDX-License-Identifier: Apache-2.0
// The log: lines with a level and a component name, as text or JSON, to stderr or a file.
//
//   log_warn("kvm", "vcpu {} did not stop", index);
//
// Any thread, and none of them waits for a reader that has stopped: its lines are lost, and
// "[N bytes lost]" is written when it reads again. Lines that a guest can cause go through a
// LogLimiter, so that a hostile guest can fill neither the disk nor the time of a vCPU. This header
// stays light (fmt/core); spdlog is in log.cc only.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include <fmt/core.h>

#include "src/base/error.h"

namespace vireo {

enum class LogLevel : std::uint8_t { kTrace, kDebug, kInfo, kWarn, kError, kOff };
enum class LogFormat : std::uint8_t { kText, kJson };

struct LogConfig {
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;
  std::string file;  ///< a path, or fd:N; empty: stderr
  std::string name;  ///< the VM's name, a field of each JSON line; may be empty
};

/// Opens the log. Until then lines go to stderr as text. Main thread, once.
Result<> open_log(const LogConfig& config);
/// Opens the log file anew (SIGHUP, after a rotation); where that fails the old one stays. Nothing
/// happens to stderr and to inherited descriptors. Main thread.
Result<> reopen_log();

/// The directory in which reopen_log() opens the file anew; -1 where it does not. Main thread.
int log_directory();

bool log_enabled(LogLevel level);
void write_log(LogLevel level, std::string_view component, std::string_view message);

template <typename... Args>
void log(LogLevel level, std::string_view component, fmt::format_string<Args...> format,
         Args&&... args) {
  if (log_enabled(level)) {
    write_log(level, component, fmt::format(format, std::forward<Args>(args)...));
  }
}
template <typename... Args>
void log_debug(std::string_view component, fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kDebug, component, format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_info(std::string_view component, fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kInfo, component, format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_warn(std::string_view component, fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kWarn, component, format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_error(std::string_view component, fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kError, component, format, std::forward<Args>(args)...);
}

/// Lets ten lines in five seconds through, from one place in the code; the next line after a quiet
/// time tells how many were left out. One member for each cause that a guest can repeat. Any
/// thread.
class LogLimiter {
 public:
  /// True where the line may be written now; `dropped` then says how many were not, since the last.
  bool allow(std::uint64_t now_ns, std::uint64_t& dropped);

 private:
  std::atomic<std::uint64_t> window_start_ns_{0};
  std::atomic<std::uint32_t> in_window_{0};
  std::atomic<std::uint64_t> dropped_{0};
};

/// A warning that the guest caused, through its limiter.
template <typename... Args>
void log_guest(LogLimiter& limiter, std::string_view component, fmt::format_string<Args...> format,
               Args&&... args);

/// CLOCK_MONOTONIC in nanoseconds.
std::uint64_t monotonic_ns();

template <typename... Args>
void log_guest(LogLimiter& limiter, std::string_view component, fmt::format_string<Args...> format,
               Args&&... args) {
  std::uint64_t dropped = 0;
  if (!log_enabled(LogLevel::kWarn) || !limiter.allow(monotonic_ns(), dropped)) {
    return;
  }
  std::string line = fmt::format(format, std::forward<Args>(args)...);
  if (dropped > 0) {
    line += fmt::format(" ({} like it were not logged)", dropped);
  }
  write_log(LogLevel::kWarn, component, line);
}

}  // namespace vireo
