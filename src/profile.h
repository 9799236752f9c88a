// SPDX-License-Identifier: Apache-2.0
// The profile of a run: for each vCPU and phase every kind of exit with its count and time, what
// KVM counted by itself, the pages of guest memory touched in each phase, and the guest kernel's
// own steps where its console shows them.
//
// Owned by Machine, and there only when a profile is asked for.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "src/bus/bus.h"
#include "src/guest_steps.h"
#include "src/kvm/kvm_stats.h"
#include "src/kvm/vcpu.h"
#include "src/memory/guest_memory.h"

namespace vireo {

class Profile {
 public:
  /// All of them outlive this object; `console` is where the guest's text goes on to.
  Profile(const GuestMemory& memory, SerialOutput& console) : memory_(memory), steps_(console) {}

  /// What the serial port writes to.
  SerialOutput& serial_output() { return steps_; }
  /// The guest has marked a moment: a phase ends. Any thread.
  void end_phase();

  /// Everything as JSON, after the vCPUs have stopped.
  Result<std::string> to_json(std::span<const std::unique_ptr<Vcpu>> vcpus,
                              const KvmStats& vm_stats, const Bus& ports, const Bus& mmio);

 private:
  static constexpr std::size_t kPhasesMax = 256;

  const GuestMemory& memory_;
  GuestSteps steps_;
  std::mutex mutex_;
  std::vector<std::uint64_t> resident_pages_;  // at the end of each phase; under mutex_
};

}  // namespace vireo
