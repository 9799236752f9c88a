// SPDX-License-Identifier: Apache-2.0
// The mark port: a byte N written by the guest is moment N of the boot timeline.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "devices/legacy/machine_events.h"
#include "src/bus/bus.h"

namespace vireo {

/// Owned by Machine; called from vCPU threads; no state.
class MarkPort final : public BusDevice {
 public:
  explicit MarkPort(MachineEvents& events) : events_(events) {}

  void read(std::uint64_t /*offset*/, std::span<std::byte> data) override {
    std::ranges::fill(data, std::byte{0xff});
  }
  void write(std::uint64_t /*offset*/, std::span<const std::byte> data) override {
    events_.mark(std::to_integer<std::uint8_t>(data[0]));
  }

 private:
  MachineEvents& events_;
};

}  // namespace vireo
