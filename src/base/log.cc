// SPDX-License-Identifier: Apache-2.0
#include "src/base/log.h"

#include <array>
#include <ctime>
#include <memory>
#include <mutex>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>

#include "src/base/colour.h"
#include "src/base/fd.h"
#include "src/base/fd_path.h"
#include "src/base/line_writer.h"
#include "src/base/owned_path.h"
#include "src/base/utc.h"

namespace vireo {

namespace {

/// The line that stands in the log for those that were lost.
std::string loss_note(std::uint64_t bytes);

/// Writes each line to a descriptor: stderr, a file in append mode, or an inherited one. What is
/// not taken (a full disk, a reader that has stopped) is counted, and told when lines are taken
/// again.
class DescriptorSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  DescriptorSink() { use_stderr(); }

  void use_stderr() {
    const std::scoped_lock lock(mutex_);
    writer_.attach(STDERR_FILENO);
    file_.reset();
    path_.clear();
    name_ = OwnedPath();
  }

  Result<> open_file(const std::string& path) {
    name_ = OwnedPath();
    if (!is_inherited(path)) {
      auto name = OwnedPath::open(path);
      if (!name) {
        return std::unexpected(std::move(name).error().context("log.file"));
      }
      name_ = std::move(*name);
    }
    TRY(attach(path, open_path(path, kFileFlags, kFileMode)));
    path_ = path;
    return {};
  }

  /// By the name in the directory that it was opened in, which is all that the sandbox leaves.
  /// Stderr and inherited descriptors stay: there is nothing to open anew.
  Result<> reopen() {
    if (directory() < 0) {
      return {};
    }
    UniqueFd file(::openat(directory(), name_.name().c_str(), kFileFlags | O_CLOEXEC, kFileMode));
    return attach(path_, file ? Result<UniqueFd>(std::move(file)) : fail_errno(errno, path_));
  }

  int directory() const { return name_.directory(); }

 private:
  // O_NONBLOCK: a FIFO without a reader is refused, and one whose reader stops does not block.
  static constexpr int kFileFlags = O_WRONLY | O_CREAT | O_APPEND | O_NOCTTY | O_NONBLOCK;
  static constexpr mode_t kFileMode = 0644;

  Result<> attach(const std::string& path, Result<UniqueFd> file) {
    if (!file) {
      return std::unexpected(std::move(file).error().context("log.file"));
    }
    if (auto fit = check_takes_text(file->get()); !fit) {
      return std::unexpected(std::move(fit).error().context(fmt::format("log.file: {}", path)));
    }
    const std::scoped_lock lock(mutex_);
    writer_.attach(file->get());
    file_ = std::move(*file);
    return {};
  }

  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    if ((lost_ == 0 || write_loss_note()) && writer_.write({line.data(), line.size()})) {
      return;
    }
    lost_ += line.size();
  }
  void flush_() override {}

  bool write_loss_note() {
    const std::string text = loss_note(lost_);
    spdlog::memory_buf_t line;
    formatter_->format(spdlog::details::log_msg("vireo", spdlog::level::warn, text), line);
    if (!writer_.write({line.data(), line.size()})) {
      return false;
    }
    lost_ = 0;
    return true;
  }

  LineWriter writer_;
  UniqueFd file_;
  std::string path_;
  OwnedPath name_;          // never taken: a log is not removed
  std::uint64_t lost_ = 0;  // bytes
};

/// The log of the process: text to stderr until open_log().
struct Log {
  Log() {
    logger.set_level(spdlog::level::info);
    // Lines come with their own time: spdlog's would open /etc/localtime.
    logger.set_formatter(std::make_unique<spdlog::pattern_formatter>("%v"));
  }

  std::shared_ptr<DescriptorSink> sink = std::make_shared<DescriptorSink>();
  spdlog::logger logger{"vireo", sink};
  LogFormat format = LogFormat::kText;
  std::string name;
  bool colours = stderr_has_colours();
};

Log& process_log() {
  static Log log;
  return log;
}

constexpr std::array kLevelNames = {"trace", "debug", "info", "warning", "error", "off"};

std::string level_text(const Log& log, LogLevel level) {
  const char* const name = kLevelNames.at(std::to_underlying(level));
  if (!log.colours || level < LogLevel::kWarn) {
    return name;
  }
  return coloured(level == LogLevel::kWarn ? Colour::kYellow : Colour::kRed, name);
}

/// RFC 3339 in UTC with microseconds.
std::string timestamp() {
  timespec now = {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const std::tm time = utc_time(now.tv_sec);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", time.tm_year + 1900,
                     time.tm_mon + 1, time.tm_mday, time.tm_hour, time.tm_min, time.tm_sec,
                     now.tv_nsec / 1000);
}

std::string line_of(const Log& log, LogLevel level, std::string_view component,
                    std::string_view message) {
  if (log.format == LogFormat::kText) {
    return fmt::format("{} {} {}: {}", timestamp(), level_text(log, level), component, message);
  }
  nlohmann::ordered_json line = {{"time", timestamp()},
                                 {"level", kLevelNames.at(std::to_underlying(level))},
                                 {"component", component},
                                 {"message", message}};
  if (!log.name.empty()) {
    line["vm"] = log.name;
  }
  // Text of a guest's may be no UTF-8: it is replaced, never refused.
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string loss_note(std::uint64_t bytes) {
  return line_of(process_log(), LogLevel::kWarn, "log", fmt::format("[{} bytes lost]", bytes));
}

}  // namespace

Result<> open_log(const LogConfig& config) {
  Log& log = process_log();
  if (config.file.empty()) {
    log.sink->use_stderr();
  } else {
    TRY(log.sink->open_file(config.file));
  }
  log.format = config.format;
  log.name = config.name;
  log.colours = config.file.empty() && stderr_has_colours();
  log.logger.set_level(static_cast<spdlog::level::level_enum>(
      config.level == LogLevel::kOff ? static_cast<int>(spdlog::level::off)
                                     : static_cast<int>(config.level)));
  return {};
}

int log_directory() {
  return process_log().sink->directory();
}

Result<> reopen_log() {
  return process_log().sink->reopen();
}

bool log_enabled(LogLevel level) {
  return process_log().logger.should_log(static_cast<spdlog::level::level_enum>(level));
}

void write_log(LogLevel level, std::string_view component, std::string_view message) {
  Log& log = process_log();
  log.logger.log(static_cast<spdlog::level::level_enum>(level), "{}",
                 line_of(log, level, component, message));
}

std::uint64_t monotonic_ns() {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

bool LogLimiter::allow(std::uint64_t now_ns, std::uint64_t& dropped) {
  constexpr std::uint64_t kWindowNs = 5'000'000'000;
  constexpr std::uint32_t kLines = 10;
  std::uint64_t start = window_start_ns_.load(std::memory_order_relaxed);
  if (start == 0 || now_ns - start >= kWindowNs) {
    // Whoever moves the window empties it; a line that slips in between costs nothing.
    if (window_start_ns_.compare_exchange_strong(start, now_ns, std::memory_order_relaxed)) {
      in_window_.store(0, std::memory_order_relaxed);
    }
  }
  if (in_window_.fetch_add(1, std::memory_order_relaxed) >= kLines) {
    dropped_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  dropped = dropped_.exchange(0, std::memory_order_relaxed);
  return true;
}

}  // namespace vireo
