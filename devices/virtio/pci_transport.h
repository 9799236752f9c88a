// SPDX-License-Identifier: Apache-2.0
// Virtio over PCI (virtio 1.2 §4.1), modern only: one function for each device, whose vendor
// capabilities say where its structures are.
//
//   BAR 0   0x0000  +--------------------------+
//                   | common configuration     |  VIRTIO_PCI_CAP_COMMON_CFG
//           0x1000  +--------------------------+
//                   | ISR status, one byte     |  VIRTIO_PCI_CAP_ISR_CFG
//           0x2000  +--------------------------+
//                   | device configuration     |  VIRTIO_PCI_CAP_DEVICE_CFG, where there is one
//           0x3000  +--------------------------+
//                   | notification, 4 bytes    |  VIRTIO_PCI_CAP_NOTIFY_CFG: a doorbell for each
//                   | for each queue           |  queue
//           0x4000  +--------------------------+
//   BAR 2           | MSI-X: see pci/msix.h    |  a vector for each queue, one for changes
//                   +--------------------------+
//   BAR 4           | shared memory            |  VIRTIO_PCI_CAP_SHARED_MEMORY_CFG, where there is
//                   +--------------------------+  some
//
// VIRTIO_PCI_CAP_PCI_CFG reaches the same from the configuration space. There is no interrupt pin:
// a driver that has no MSI-X polls the ISR status.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "devices/pci/function.h"
#include "devices/pci/msix.h"
#include "devices/virtio/transport.h"
#include "src/bus/bus.h"

namespace vireo {

class PciTransport final : public BusDevice, VirtioInterrupts {
 public:
  /// `device`, `memory`, `reactors` and `router` outlive it. The queues are served by the reactors
  /// in turn; the first is the main thread's.
  static Result<std::unique_ptr<PciTransport>> create(VirtioDevice& device, GuestMemory& memory,
                                                      std::span<Reactor* const> reactors,
                                                      MsiRouter& router);

  // BusDevice, on vCPU threads: BAR 0.
  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

  /// For a slot of the bus.
  PciFunction& function() { return function_; }
  VirtioTransport& core() { return *core_; }
  // As those of VirtioTransport; the function's are the bus's to do, and its restore() comes
  // before.
  void power_cycle();
  void save(SnapshotWriter& writer, unsigned slot);
  Result<> restore(SnapshotReader& reader, unsigned slot);

 private:
  /// §4.1.4.9: a word of the configuration space that is a window to the BAR, offset and length
  /// which the driver has written before it.
  struct ConfigAccess final : BusDevice {
    explicit ConfigAccess(PciTransport& owner) : transport(owner) {}
    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;
    struct Place {
      BusDevice* device = nullptr;
      std::uint64_t offset = 0;
      std::size_t length = 0;
    };
    std::optional<Place> place() const;
    PciTransport& transport;
    unsigned capability = 0;  // where it is
  };

  explicit PciTransport(const VirtioDevice& device);
  void build_function(const VirtioDevice& device);
  /// Where a structure is.
  struct Structure {
    std::uint8_t bar = 0;
    std::uint8_t id = 0;  // of several
    std::uint32_t offset = 0;
    std::uint32_t length = 0;
  };
  unsigned add_capability(std::uint8_t type, const Structure& structure,
                          std::span<const std::byte> more = {});

  std::uint32_t read_common(std::uint64_t offset, std::size_t width) const;
  std::uint32_t read_common_8(std::uint64_t offset) const;
  std::uint32_t read_common_16(std::uint64_t offset) const;
  std::uint32_t read_common_32(std::uint64_t offset) const;
  void write_common(std::uint64_t offset, std::size_t width, std::uint32_t value);
  void write_status(std::uint8_t value);
  void forget_driver();
  void write_common_16(std::uint64_t offset, std::uint16_t value);
  void write_common_32(std::uint64_t offset, std::uint32_t value);
  std::uint16_t vector_or_none(std::uint16_t vector) const;
  Result<> restore_registers(SnapshotReader& reader, unsigned slot);

  // VirtioInterrupts.
  void raise_queue(unsigned index) override;
  void raise_config() override;
  void raise(std::uint8_t cause, std::uint16_t vector);

  PciFunction function_;
  ConfigAccess config_access_{*this};
  std::unique_ptr<Msix> msix_;
  std::unique_ptr<VirtioTransport> core_;
  std::atomic<std::uint32_t> device_features_page_ = 0;
  std::atomic<std::uint32_t> driver_features_page_ = 0;
  std::atomic<std::uint16_t> queue_ = 0;  // the selected one
  std::atomic<std::uint16_t> config_vector_;
  std::vector<std::atomic<std::uint16_t>> queue_vectors_;
  std::atomic<std::uint8_t> isr_ = 0;
};

}  // namespace vireo
