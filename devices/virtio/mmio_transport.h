// SPDX-License-Identifier: Apache-2.0
// Virtio over MMIO (virtio 1.2 §4.2): a page of registers and one interrupt line for each device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "devices/virtio/transport.h"
#include "src/bus/bus.h"
#include "src/bus/interrupt.h"

namespace vireo {

class MmioTransport final : public BusDevice, VirtioInterrupts {
 public:
  /// What it answers to, in bytes.
  static constexpr std::uint64_t kSize = 0x1000;

  /// `device`, `memory`, `reactors` and `line` outlive it. The queues are served by the reactors in
  /// turn; the first is the main thread's. Where the device has shared memory, the machine has put
  /// it at `shared_memory`.
  static Result<std::unique_ptr<MmioTransport>> create(VirtioDevice& device, GuestMemory& memory,
                                                       std::span<Reactor* const> reactors,
                                                       Interrupt& line,
                                                       GuestAddress shared_memory = {});

  // BusDevice, on vCPU threads.
  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

  VirtioTransport& core() { return *core_; }
  // As those of VirtioTransport.
  void power_cycle();
  void save(SnapshotWriter& writer, unsigned index);
  Result<> restore(SnapshotReader& reader, unsigned index);

 private:
  MmioTransport(Interrupt& line, std::optional<SharedMemoryRegion> shared_memory,
                GuestAddress shared_memory_at)
      : line_(line), shared_memory_(shared_memory), shared_memory_at_(shared_memory_at) {}

  std::uint32_t read_register(std::uint64_t offset) const;
  std::uint32_t read_shared_memory_register(std::uint64_t offset) const;
  void write_register(std::uint64_t offset, std::uint32_t value);
  void write_queue_register(std::uint64_t offset, std::uint32_t value);

  // VirtioInterrupts.
  void raise_queue(unsigned index) override;
  void raise_config() override;
  void raise(std::uint32_t cause);

  Result<> restore_registers(SnapshotReader& reader, unsigned index);

  Interrupt& line_;
  const std::optional<SharedMemoryRegion> shared_memory_;
  const GuestAddress shared_memory_at_;
  std::unique_ptr<VirtioTransport> core_;
  std::atomic<std::uint32_t> device_features_page_ = 0;
  std::atomic<std::uint32_t> driver_features_page_ = 0;
  std::atomic<std::uint32_t> queue_ = 0;             // the selected one
  std::atomic<std::uint32_t> shared_memory_id_ = 0;  // the selected one
  std::atomic<std::uint32_t> interrupt_status_ = 0;
};

}  // namespace vireo
