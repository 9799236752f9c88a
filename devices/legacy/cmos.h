// SPDX-License-Identifier: Apache-2.0
// The CMOS clock (MC146818) at ports 0x70 and 0x71: wall time in UTC, and bytes that are zero. It
// never shows an update in progress, so that no guest waits for one.
//
// Owned by Machine; called from vCPU threads.
#pragma once

#include <cstdint>
#include <ctime>
#include <mutex>
#include <span>
#include <string_view>

#include "src/bus/bus.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

class Cmos final : public BusDevice {
 public:
  static constexpr std::uint64_t kPorts = 2;

  /// `now` gives the seconds since the epoch.
  explicit Cmos(std::time_t (*now)()) : now_(now) {}

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;
  /// As at power-on; the clock goes on.
  void reset();

  // As those of Serial16550.
  void save(SnapshotWriter& writer);
  Result<> restore(SnapshotReader& reader);

 private:
  struct State {
    static constexpr std::string_view kTag = "cmos";
    static constexpr std::uint32_t kVersion = 1;
    std::uint8_t index = 0;
    void fields(auto& ar) { ar(index); }
  };

  std::uint8_t read_register(std::uint8_t index) const;

  std::time_t (*now_)();
  std::mutex mutex_;
  State state_;
};

}  // namespace vireo
