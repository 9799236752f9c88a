// SPDX-License-Identifier: Apache-2.0
// How a device raises an interrupt without knowing KVM: an irqfd behind a GSI, or an MSI later.
#pragma once

namespace vireo {

class Interrupt {
 public:
  virtual ~Interrupt() = default;
  /// One edge. Any thread; never blocks, never fails.
  virtual void raise() = 0;
};

}  // namespace vireo
