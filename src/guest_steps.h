// SPDX-License-Identifier: Apache-2.0
// The guest kernel's own boot steps, read off its console for the profile: with `initcall_debug` on
// its command line Linux prints how long each of its init functions took.
//
// Owned by Machine; stands between the serial port and the console when a profile is asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "devices/legacy/serial_16550.h"

namespace vireo {

struct GuestStep {
  std::string name;  ///< the function: letters, digits, '_' and '.'
  std::uint64_t duration_us = 0;
};

class GuestSteps final : public SerialOutput {
 public:
  explicit GuestSteps(SerialOutput& next) : next_(next) {}

  void transmit(std::byte byte) override;
  void receiver_empty() override { next_.receiver_empty(); }

  /// The steps in the order in which they ended, kStepsMax at most; once the vCPUs have stopped.
  const std::vector<GuestStep>& steps() const { return steps_; }

  static constexpr std::size_t kStepsMax = 4096;

 private:
  void end_line();

  static constexpr std::size_t kLineMax = 256;  // longer lines are nothing that we look for

  SerialOutput& next_;
  std::string line_;
  bool too_long_ = false;
  std::vector<GuestStep> steps_;
};

}  // namespace vireo
