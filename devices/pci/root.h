// SPDX-License-Identifier: Apache-2.0
// The PCI bus: 32 slots of one function each, with a host bridge in slot 0.
//
// The machine puts two entries on its Bus, which stays frozen: ecam(), the configuration spaces
// (PCI Express 4.0 §7.2.2), and mmio(), the whole window that BARs lie in. The guest moves BARs
// about in it as it likes: where they overlap the lowest slot answers, and outside of the window
// none does. A BAR that is memory is the guest's without the bus, while it overlaps no lower one.
//
//   ecam():  bit 19 … 15: slot     14 … 12: function, 0     11 … 0: register
//
// Built before a vCPU runs; functions are not owned and stay for good. Accesses come from vCPU
// threads. One mutex guards where the BARs are; it is not held in a call to a BAR's device or to a
// configuration space, so those may wait.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "devices/pci/function.h"
#include "src/base/address.h"
#include "src/base/log.h"
#include "src/bus/bus.h"

namespace vireo {

/// What the host does at an address, with no way through the bus. Called from vCPU threads, one at
/// a time.
class PciHost {
 public:
  virtual ~PciHost() = default;
  /// Writes of `width` bytes at `address` count up `fd` from here on.
  virtual Result<> attach_doorbell(GuestAddress address, unsigned width, int fd) = 0;
  /// What attach_doorbell() has done with the same arguments ends.
  virtual void detach_doorbell(GuestAddress address, unsigned width, int fd) = 0;
  /// The guest finds `memory`, which is whole pages, at `address` from here on.
  virtual Result<> map(GuestAddress address, std::span<std::byte> memory) = 0;
  /// What map() has done with the same arguments ends.
  virtual void unmap(GuestAddress address, std::span<std::byte> memory) = 0;
};

class PciRoot {
 public:
  static constexpr unsigned kSlots = 32;
  static constexpr std::uint64_t kEcamSize = std::uint64_t{1} << 20;

  /// BARs lie in `window`; `host` outlives it.
  PciRoot(GuestRange window, PciHost& host);
  PciRoot(const PciRoot&) = delete;
  PciRoot& operator=(const PciRoot&) = delete;

  /// Puts the function into a free slot (CHECK), with its BARs where nobody else's are, as firmware
  /// would have. kConfig where the window is full.
  Result<> add(unsigned slot, PciFunction& function);

  /// As after the functions were added. While no vCPU runs.
  void power_cycle();
  /// All functions, each in the sections of its slot. As PciFunction::save().
  void save(SnapshotWriter& writer) const;
  /// As it was saved, of a bus with the same functions in the same slots; as after power_cycle()
  /// where that fails. See PciFunction::restore().
  Result<> restore(SnapshotReader& reader);

  BusDevice& ecam() { return ecam_; }
  BusDevice& mmio() { return mmio_; }

 private:
  struct Ecam final : BusDevice {
    explicit Ecam(PciRoot& owner) : root(owner) {}
    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;
    PciFunction* find(std::uint64_t offset) const;
    PciRoot& root;
  };
  struct Mmio final : BusDevice {
    explicit Mmio(PciRoot& owner) : root(owner) {}
    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;
    PciRoot& root;
  };
  /// A BAR that answers.
  struct Mapped {
    const PciFunction* function = nullptr;
    unsigned bar = 0;
    std::uint64_t address = 0;
    std::uint64_t size = 0;
  };
  /// What an access to mmio() goes to; no device where nothing answers.
  struct Target {
    BusDevice* device = nullptr;
    std::uint64_t offset = 0;
  };
  /// A BAR that is memory.
  struct Memory {
    const PciFunction* function = nullptr;
    unsigned bar = 0;
    std::optional<GuestAddress> mapped;
  };
  struct Bell {
    const PciFunction* function = nullptr;
    PciFunction::Doorbell doorbell;
    std::optional<GuestAddress> attached;
  };

  Result<> restore_functions(SnapshotReader& reader);
  const Mapped* find(std::uint64_t address, std::uint64_t size) const;
  Target target(std::uint64_t offset, std::uint64_t size);
  const Mapped* find_bar(const PciFunction& function, unsigned bar) const;
  std::optional<GuestAddress> wanted_address(const Bell& bell) const;
  std::optional<GuestAddress> wanted_address(const Memory& memory) const;
  void update();
  void find_bars();
  void move_doorbells();
  void move_memory();

  const GuestRange window_;
  PciHost& host_;
  Ecam ecam_{*this};
  Mmio mmio_{*this};
  PciFunction host_bridge_;
  std::array<PciFunction*, kSlots> slots_ = {};
  std::uint64_t next_free_;  // in the window, at the start

  std::mutex mutex_;
  std::vector<Mapped> mapped_;  // by slot, then by BAR
  std::vector<Bell> bells_;
  std::vector<Memory> memories_;
  LogLimiter log_limiter_;
};

}  // namespace vireo
