// SPDX-License-Identifier: Apache-2.0
// Firecracker's boot timer: a guest that writes byte 123 into its page is logged with the time
// since the start, in the words of Firecracker, so that tools which look for that line find it.
#pragma once

#include <cstdint>
#include <span>

#include "src/base/log.h"
#include "src/bus/bus.h"

namespace vireo {

/// Owned by Machine; called from vCPU threads.
class BootTimer final : public BusDevice {
 public:
  static constexpr std::uint8_t kMagic = 123;

  /// The times at which the start counts: CLOCK_MONOTONIC and CLOCK_PROCESS_CPUTIME_ID, in ns.
  BootTimer(std::uint64_t start_ns, std::uint64_t start_cpu_ns)
      : start_ns_(start_ns), start_cpu_ns_(start_cpu_ns) {}

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  const std::uint64_t start_ns_;
  const std::uint64_t start_cpu_ns_;
  LogLimiter limiter_;
};

}  // namespace vireo
