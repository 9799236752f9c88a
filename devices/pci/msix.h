// SPDX-License-Identifier: Apache-2.0
// Message-signalled interrupts of a PCI function (PCI Local Bus 3.0 §6.8.2, MSI-X): the table in
// which the guest says what each vector sends, and the array of what waits behind a mask.
//
//   0x0000      +-----------------------------+
//               | table, 16 bytes each:       |  address, upper address, data, vector control
//   bar_size/2  +-----------------------------+  pba_offset()
//               | pending bits, one each      |
//   bar_size    +-----------------------------+
//
// Owned with its function; a BAR of its own. The guest's accesses come from vCPU threads and take a
// mutex, under which the router is told of changes. raise() takes none, so a reactor never waits
// for a vCPU that reprograms a route.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "src/base/error.h"
#include "src/bus/bus.h"
#include "src/bus/interrupt.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

/// What carries the vectors of one function to the guest. Outlives the function.
class MsiRouter {
 public:
  virtual ~MsiRouter() = default;
  /// What raises `vector`: once for each, before a vCPU runs.
  virtual Result<std::unique_ptr<Interrupt>> create_vector(unsigned vector) = 0;
  /// From here on raising `vector` sends `data` to `address`; one vCPU thread at a time. Told that
  /// it is masked, a router may leave the route as it was: nothing is raised then, but for what
  /// another thread had begun, and that must not be lost. It is told again before the next raise.
  virtual void route(unsigned vector, std::uint64_t address, std::uint32_t data, bool masked) = 0;
};

class Msix final : public BusDevice {
 public:
  /// `vectors` is 1 to 2048.
  static Result<std::unique_ptr<Msix>> create(unsigned vectors, MsiRouter& router);
  Msix(const Msix&) = delete;
  Msix& operator=(const Msix&) = delete;
  ~Msix() override = default;

  unsigned vectors() const { return static_cast<unsigned>(vectors_.size()); }
  std::uint64_t bar_size() const;
  std::uint64_t pba_offset() const { return bar_size() / 2; }

  /// Sends `vector`, or keeps it pending while it is masked; goes nowhere while MSI-X is disabled.
  /// Any thread; never blocks.
  void raise(unsigned vector);
  /// The guest has written the capability's message control word.
  void set_control(std::uint16_t control);

  /// As after create(), for a guest that was reset. While no vCPU runs and nobody raises.
  void power_cycle();
  /// The section of the function at `slot`, beside the control word. As power_cycle().
  void save(SnapshotWriter& writer, unsigned slot);
  /// As it was saved, under that control word; as after create() where that fails. As
  /// power_cycle(), with the interrupt controllers as they were saved: what was on its way to them
  /// is sent again.
  Result<> restore(SnapshotReader& reader, unsigned slot, std::uint16_t control);

  // BusDevice: the BAR.
  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  enum class Gate : std::uint8_t { kOff, kMasked, kOpen };
  struct Vector {
    std::unique_ptr<Interrupt> interrupt;
    std::atomic<Gate> gate = Gate::kOff;
    std::atomic<bool> pending = false;
    // As the router was told last.
    std::uint64_t address = 0;
    std::uint32_t data = 0;
  };

  Msix(unsigned vectors, MsiRouter& router);

  static Gate gate_for(std::uint16_t control, bool masked);
  void mask_all();
  std::byte byte_at(std::uint64_t offset) const;
  void update(unsigned index);
  std::uint32_t table_word(unsigned index, unsigned field) const;
  void set_table_word(unsigned index, unsigned field, std::uint32_t value);
  std::uint64_t address_of(unsigned index) const;
  bool is_masked(unsigned index) const;

  MsiRouter& router_;
  std::vector<Vector> vectors_;
  std::mutex mutex_;
  std::uint16_t control_ = 0;
  std::vector<std::byte> table_;
};

}  // namespace vireo
