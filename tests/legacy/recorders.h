// SPDX-License-Identifier: Apache-2.0
// What devices talk to, remembering what they said.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "devices/legacy/machine_events.h"
#include "devices/legacy/serial_16550.h"
#include "src/bus/bus.h"
#include "src/bus/interrupt.h"

namespace vireo {

struct CountedInterrupt final : Interrupt {
  void raise() override { ++edges; }
  int edges = 0;
};

struct RecordedOutput final : SerialOutput {
  void transmit(std::byte byte) override { text += std::to_integer<char>(byte); }
  void receiver_empty() override { ++emptied; }
  std::string text;
  int emptied = 0;
};

struct RecordedEvents final : MachineEvents {
  void power_off() override { log.emplace_back("power_off"); }
  void reset() override { log.emplace_back("reset"); }
  void panicked() override { log.emplace_back("panicked"); }
  void mark(std::uint8_t number) override { log.push_back("mark " + std::to_string(number)); }
  std::vector<std::string> log;
};

inline void out(BusDevice& device, std::uint64_t offset, unsigned value) {
  const std::byte byte{static_cast<unsigned char>(value)};
  device.write(offset, std::span(&byte, 1));
}

inline unsigned in(BusDevice& device, std::uint64_t offset) {
  std::byte byte{};
  device.read(offset, std::span(&byte, 1));
  return std::to_integer<unsigned>(byte);
}

}  // namespace vireo
