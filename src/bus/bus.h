// SPDX-License-Identifier: Apache-2.0
// The address space that vCPU exits go to: port I/O and MMIO are one Bus each.
//
// Built by Machine before the first KVM_RUN, then frozen; afterwards read without a lock by every
// vCPU thread. Devices are not owned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/error.h"

namespace vireo {

/// What sits behind a range of a bus. Both calls come from vCPU threads, several at a time: a
/// device that has state guards it. `offset` counts from the start of the range and offset plus
/// length never leaves it; lengths are 1, 2, 4 or 8, at any alignment.
class BusDevice {
 public:
  virtual ~BusDevice() = default;
  virtual void read(std::uint64_t offset, std::span<std::byte> data) = 0;
  virtual void write(std::uint64_t offset, std::span<const std::byte> data) = 0;
};

class Bus {
 public:
  struct Entry {
    std::uint64_t base = 0;
    std::uint64_t size = 0;
    BusDevice* device = nullptr;
    std::string_view name;  ///< for the exit profile; a literal
  };

  /// Adds `size` bytes from `base`. Overlapping another entry, an empty range, or a call after
  /// freeze() is a bug of ours (CHECK).
  void add(std::uint64_t base, std::uint64_t size, BusDevice& device, std::string_view name);
  /// No add() from here on; the vCPU threads may start.
  void freeze() { frozen_ = true; }

  /// Where nothing answers, or an access crosses the end of a device, reads give all ones (as an
  /// empty bus does) and writes go nowhere; false then, so that the caller can count it.
  bool read(std::uint64_t address, std::span<std::byte> data) const;
  bool write(std::uint64_t address, std::span<const std::byte> data) const;

  /// The entry that holds [address, address + size), or nullptr.
  const Entry* find(std::uint64_t address, std::uint64_t size) const;
  std::span<const Entry> entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;  // sorted by base
  bool frozen_ = false;
};

}  // namespace vireo
