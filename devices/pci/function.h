// SPDX-License-Identifier: Apache-2.0
// One function on the PCI bus (PCI Local Bus 3.0 §6): its configuration space with a type 0 header,
// the BARs, the capability list and MSI-X.
//
//   0x000  +----------------------------+
//          | type 0 header              |  PCI_BASE_ADDRESS_0 …: 64-bit memory, two words each
//   0x040  +----------------------------+
//          | capabilities, as added     |
//   0x100  +----------------------------+
//          | zeros: no extended ones    |
//   0x1000 +----------------------------+
//
// It is two images of the space, of which one says what bits the guest may write: all else is
// read-only. No interrupt pin: a driver without MSI-X polls.
//
// Built before a vCPU runs, by the calls marked so, and owned by what it is the face of. The
// guest's accesses come from vCPU threads; a mutex guards the space and is not held in a call to a
// BusDevice. MSI-X has a mutex of its own, taken after it.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include <linux/pci_regs.h>

#include "devices/pci/msix.h"
#include "src/bus/bus.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

class PciFunction {
 public:
  struct Identity {
    std::uint16_t vendor = 0;
    std::uint16_t device = 0;
    std::uint16_t class_code = 0;  ///< base class and subclass, as PCI_CLASS_DEVICE has them
    std::uint8_t revision = 0;
    std::uint16_t subsystem_vendor = 0;
    std::uint16_t subsystem = 0;
  };
  struct Bar {
    std::uint64_t size = 0;  ///< 0: none, or the upper word of the one before
    // What it is: something that answers to accesses, or memory.
    BusDevice* device = nullptr;
    std::span<std::byte> memory;
  };
  /// A place in a BAR where a write does no more than count up an eventfd.
  struct Doorbell {
    unsigned bar = 0;
    std::uint64_t offset = 0;
    unsigned width = 0;  ///< of the write, in bytes
    int fd = -1;
  };

  explicit PciFunction(const Identity& identity);
  PciFunction(const PciFunction&) = delete;
  PciFunction& operator=(const PciFunction&) = delete;

  // To build it. What does not fit is a bug of ours (CHECK).

  /// A 64-bit memory BAR of `size` bytes, a power of two, in the words `index` and `index` + 1;
  /// its accesses go to `device`, which outlives the function.
  void add_bar(unsigned index, std::uint64_t size, BusDevice& device);
  /// The same, prefetchable, that is the host's `memory`: a power of two of bytes, from a page on.
  void add_memory_bar(unsigned index, std::span<std::byte> memory);
  /// `body` is the capability from behind its header on, and `writable` has the bits of it that
  /// the guest may write; returns where the header is.
  unsigned add_capability(std::uint8_t id, std::span<const std::byte> body,
                          std::span<const std::byte> writable = {});
  /// The MSI-X capability, with `msix` as the BAR `bar`.
  void add_msix(unsigned bar, Msix& msix);
  void add_doorbell(const Doorbell& doorbell) { doorbells_.push_back(doorbell); }
  /// The four bytes at `offset` are not stored: accesses to them go to `device`.
  void set_window(unsigned offset, BusDevice& device);

  /// It is built, BARs placed: what power_cycle() goes back to.
  void keep_as_initial();

  // For the guest, and for who puts the function on a bus.

  /// Accesses of 1, 2 or 4 bytes inside a word of four, or of two whole words. Others read as all
  /// ones and write nothing.
  void read_config(std::uint64_t offset, std::span<std::byte> data);
  /// True where a BAR may have moved.
  bool write_config(std::uint64_t offset, std::span<const std::byte> data);

  /// As after keep_as_initial(): the whole machine is reset. While no vCPU runs.
  void power_cycle();
  /// What the guest has written, in the sections of `slot`. While no vCPU runs and nobody raises.
  void save(SnapshotWriter& writer, unsigned slot) const;
  /// As it was saved, from a function of the same make; as after power_cycle() where that fails.
  /// See Msix::restore().
  Result<> restore(SnapshotReader& reader, unsigned slot);

  const Bar& bar(unsigned index) const { return bars_[index]; }
  /// Where the guest has put it; nothing while it answers to no memory accesses.
  std::optional<std::uint64_t> bar_address(unsigned index) const;
  std::span<const Doorbell> doorbells() const { return doorbells_; }

 private:
  void add_bar(unsigned index, const Bar& bar, std::uint32_t flags);
  template <typename T>
  void set(unsigned offset, T value);
  template <typename T>
  T get(unsigned offset) const;
  void read_word(unsigned offset, std::span<std::byte> data);
  bool write_word(unsigned offset, std::span<const std::byte> data);
  bool in_window(unsigned offset) const {
    return window_ != nullptr && offset / 4 == window_at_ / 4;
  }

  std::array<Bar, PCI_STD_NUM_BARS> bars_ = {};
  std::vector<Doorbell> doorbells_;
  Msix* msix_ = nullptr;
  unsigned msix_at_ = 0;  // the capability
  BusDevice* window_ = nullptr;
  unsigned window_at_ = 0;
  unsigned capabilities_end_ = PCI_STD_HEADER_SIZEOF;
  unsigned last_link_ = PCI_CAPABILITY_LIST;  // what points at the next capability

  mutable std::mutex mutex_;
  std::array<std::byte, PCI_CFG_SPACE_EXP_SIZE> space_ = {};
  std::array<std::byte, PCI_CFG_SPACE_EXP_SIZE> writable_ = {};
  std::array<std::byte, PCI_CFG_SPACE_SIZE> initial_ = {};  // nothing behind it is ever written
};

}  // namespace vireo
