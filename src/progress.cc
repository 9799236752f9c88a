// SPDX-License-Identifier: Apache-2.0
#include "src/progress.h"

#include <cstdio>
#include <utility>

#include <unistd.h>

#include <fmt/core.h>

namespace vireo {

Progress::Progress(std::string what, std::uint64_t total)
    : what_(std::move(what)), total_(total), shown_(::isatty(STDERR_FILENO) == 1) {
  add(0);
}

Progress::~Progress() {
  if (shown_) {
    std::fputs("\r\x1b[K", stderr);
  }
}

void Progress::add(std::uint64_t done) {
  done_ += done;
  const auto percent = static_cast<unsigned>(total_ == 0 ? 100 : done_ * 100 / total_);
  if (shown_ && std::exchange(percent_, percent) != percent) {
    constexpr unsigned kWidth = 40;
    const std::string bar(percent * kWidth / 100, '#');
    std::fputs(fmt::format("\r{} [{:<{}}] {:>3} %", what_, bar, kWidth, percent).c_str(), stderr);
  }
}

}  // namespace vireo
