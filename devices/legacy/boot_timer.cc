// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/boot_timer.h"

#include <algorithm>
#include <ctime>

namespace vireo {

void BootTimer::read(std::uint64_t /*offset*/, std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{0});
}

void BootTimer::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset != 0 || data.size() != 1 || std::to_integer<std::uint8_t>(data[0]) != kMagic) {
    log_guest(limiter_, "boot-timer", "a write that is not the byte {} at offset 0", kMagic);
    return;
  }
  timespec cpu = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  const std::uint64_t cpu_us = (static_cast<std::uint64_t>(cpu.tv_sec) * 1'000'000'000 +
                                static_cast<std::uint64_t>(cpu.tv_nsec) - start_cpu_ns_) /
                               1000;
  const std::uint64_t us = (monotonic_ns() - start_ns_) / 1000;
  log_info("boot-timer", "Guest-boot-time = {:>6} us {} ms, {:>6} CPU us {} CPU ms", us, us / 1000,
           cpu_us, cpu_us / 1000);
}

}  // namespace vireo
