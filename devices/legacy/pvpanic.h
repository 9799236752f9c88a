// SPDX-License-Identifier: Apache-2.0
// pvpanic (docs/specs/pvpanic of QEMU): one byte by which a guest's kernel reports its panic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "devices/legacy/machine_events.h"
#include "src/bus/bus.h"

namespace vireo {

/// Owned by Machine; called from vCPU threads; no state.
class Pvpanic final : public BusDevice {
 public:
  static constexpr std::uint8_t kPanicked = 0x01;
  static constexpr std::uint8_t kCrashLoaded = 0x02;  ///< a crash kernel takes over: not an end

  explicit Pvpanic(MachineEvents& events) : events_(events) {}

  void read(std::uint64_t /*offset*/, std::span<std::byte> data) override {
    std::ranges::fill(data, std::byte{kPanicked | kCrashLoaded});
  }
  void write(std::uint64_t /*offset*/, std::span<const std::byte> data) override {
    if ((std::to_integer<std::uint8_t>(data[0]) & kPanicked) != 0) {
      events_.panicked();
    }
  }

 private:
  MachineEvents& events_;
};

}  // namespace vireo
