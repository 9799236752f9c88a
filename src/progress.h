// SPDX-License-Identifier: Apache-2.0
// How far a long command is: a line on the terminal that stderr is, and nothing elsewhere.
#pragma once

#include <cstdint>
#include <string>

namespace vireo {

class Progress {
 public:
  /// `total` of whatever is counted.
  Progress(std::string what, std::uint64_t total);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// Removes the line.
  ~Progress();

  void add(std::uint64_t done);

 private:
  const std::string what_;
  const std::uint64_t total_;
  const bool shown_;
  std::uint64_t done_ = 0;
  unsigned percent_ = ~0U;
};

}  // namespace vireo
