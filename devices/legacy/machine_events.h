// SPDX-License-Identifier: Apache-2.0
// What the small devices tell the machine. Called on vCPU threads; returns at once.
#pragma once

#include <cstdint>

namespace vireo {

class MachineEvents {
 public:
  virtual ~MachineEvents() = default;
  /// ACPI sleep state S5: the guest has shut down.
  virtual void power_off() = 0;
  /// The guest asked for a reset of the machine (i8042, ACPI reset register).
  virtual void reset() = 0;
  /// The guest's kernel reported its panic (pvpanic).
  virtual void panicked() = 0;
  /// The guest wrote `number` to the mark port.
  virtual void mark(std::uint8_t number) = 0;
};

}  // namespace vireo
