// SPDX-License-Identifier: Apache-2.0
// The registers of hardware-reduced ACPI (ACPI 6.5 §4.8.3.7 and §5.2.9): sleep control, sleep
// status and reset, one byte each from one base, and behind them the event register of the generic
// event device (§5.6.9), 32 bits.
//
//   base + 0  sleep control   base + 1  sleep status   base + 2  reset   base + 4 … 7  events
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "devices/legacy/machine_events.h"
#include "src/bus/bus.h"
#include "src/bus/interrupt.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

/// Owned by Machine; read() and write() from vCPU threads, notify() from any.
class AcpiPm final : public BusDevice {
 public:
  static constexpr std::uint64_t kPorts = 8;
  /// SLP_TYP of S5, as the DSDT's _S5 package says.
  static constexpr std::uint8_t kSleepTypeS5 = 5;

  /// `reset_value` is what the FADT tells the guest to write into the reset register.
  AcpiPm(Interrupt& event_interrupt, MachineEvents& events, std::uint8_t reset_value)
      : interrupt_(event_interrupt), events_(events), reset_value_(reset_value) {}

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

  /// Makes `bits` pending in the event register and raises its interrupt.
  void notify(std::uint32_t bits);
  /// As at power-on: no event is pending.
  void reset() { pending_.store(0, std::memory_order_release); }

  // As those of Serial16550.
  void save(SnapshotWriter& writer) const;
  Result<> restore(SnapshotReader& reader);

 private:
  Interrupt& interrupt_;
  MachineEvents& events_;
  const std::uint8_t reset_value_;
  std::atomic<std::uint32_t> pending_ = 0;
};

}  // namespace vireo
