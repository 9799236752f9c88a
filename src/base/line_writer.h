// SPDX-License-Identifier: Apache-2.0
// Writes lines to a descriptor and never waits for who reads them: whoever logs may be a vCPU.
//
// O_NONBLOCK belongs to the open file description, which we share with whoever gave us stderr or
// fd:N, so it is not ours to set. A socket is sent to without waiting, a pipe or terminal is opened
// once more for a description of our own; where that cannot be, it is asked before each write.
//
// Owned by the log, used under its lock.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "src/base/fd.h"

namespace vireo {

class LineWriter {
 public:
  /// Writes to `fd` from now on, which is not closed before the next attach().
  void attach(int fd);

  /// Writes all of `line`, or nothing. False where it was not taken: a full disk, a reader that has
  /// stopped or gone. A line taken in part is finished before any other.
  bool write(std::string_view line);

 private:
  enum class Way : std::uint8_t { kWrite, kSend, kAskFirst };

  std::size_t put(std::string_view bytes) const;

  int fd_ = -1;
  UniqueFd own_;  // the description of our own, where there is one
  Way way_ = Way::kWrite;
  std::string rest_;
};

}  // namespace vireo
