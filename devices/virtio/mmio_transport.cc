// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/mmio_transport.h"

#include <algorithm>

#include <fmt/core.h>

#include "devices/virtio/transport_state.h"
#include "devices/virtio/uapi.h"
#include "src/base/endian.h"

namespace vireo {

namespace {

constexpr std::uint32_t kMagic = 0x74726976;  // "virt"
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kVendor = 0x4f524956;  // "VIRO"
/// §4.2.2: the length and address of a shared memory region that is not there.
constexpr std::uint64_t kNoSharedMemory = ~std::uint64_t{0};

}  // namespace

Result<std::unique_ptr<MmioTransport>> MmioTransport::create(VirtioDevice& device,
                                                             GuestMemory& memory,
                                                             std::span<Reactor* const> reactors,
                                                             Interrupt& line,
                                                             GuestAddress shared_memory) {
  auto transport = std::unique_ptr<MmioTransport>(
      new MmioTransport(line, device.shared_memory(), shared_memory));
  TRY_ASSIGN(
      transport->core_,
      VirtioTransport::create(
          {.device = device, .memory = memory, .interrupts = *transport, .reactors = reactors}));
  return transport;
}

void MmioTransport::power_cycle() {
  core_->power_cycle();
  device_features_page_ = 0;
  driver_features_page_ = 0;
  queue_ = 0;
  shared_memory_id_ = 0;
  interrupt_status_ = 0;
}

void MmioTransport::save(SnapshotWriter& writer, unsigned index) {
  writer.add(index, VirtioMmioState{.device_features_page = device_features_page_,
                                    .driver_features_page = driver_features_page_,
                                    .queue = queue_,
                                    .shared_memory_id = shared_memory_id_,
                                    .interrupt_status = interrupt_status_});
  core_->save(writer, index);
}

Result<> MmioTransport::restore(SnapshotReader& reader, unsigned index) {
  if (Result<> restored = restore_registers(reader, index); !restored) {
    power_cycle();
    return restored;
  }
  if (interrupt_status_ != 0) {
    // One that the host had not delivered when the controllers were saved is in neither of them.
    line_.raise();
  }
  return {};
}

Result<> MmioTransport::restore_registers(SnapshotReader& reader, unsigned index) {
  TRY_ASSIGN(const VirtioMmioState state, reader.take<VirtioMmioState>(index));
  constexpr std::uint32_t kCauses = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
  if ((state.interrupt_status & ~kCauses) != 0) {
    return bad_section<VirtioMmioState>(
        index, fmt::format("has an interrupt status of {:#x}", state.interrupt_status));
  }
  TRY(core_->restore(reader, index));
  device_features_page_ = state.device_features_page;
  driver_features_page_ = state.driver_features_page;
  queue_ = state.queue;
  shared_memory_id_ = state.shared_memory_id;
  interrupt_status_ |= state.interrupt_status;
  return {};
}

// §4.2.2.2: the driver uses 32-bit accesses, but for the configuration space. Others find nothing.

void MmioTransport::read(std::uint64_t offset, std::span<std::byte> data) {
  if (offset >= VIRTIO_MMIO_CONFIG) {
    core_->read_config(offset - VIRTIO_MMIO_CONFIG, data);
    return;
  }
  std::ranges::fill(data, std::byte{0});
  if (data.size() == sizeof(std::uint32_t)) {
    const auto bytes =
        std::bit_cast<std::array<std::byte, sizeof(le32)>>(le32(read_register(offset)));
    std::ranges::copy(bytes, data.begin());
  }
}

void MmioTransport::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset < VIRTIO_MMIO_CONFIG && data.size() == sizeof(std::uint32_t)) {
    std::array<std::byte, sizeof(le32)> bytes = {};
    std::ranges::copy(data, bytes.begin());
    write_register(offset, std::bit_cast<le32>(bytes));
  }
}

std::uint32_t MmioTransport::read_register(std::uint64_t offset) const {
  switch (offset) {
    case VIRTIO_MMIO_MAGIC_VALUE:
      return kMagic;
    case VIRTIO_MMIO_VERSION:
      return kVersion;
    case VIRTIO_MMIO_DEVICE_ID:
      return core_->device_type();
    case VIRTIO_MMIO_VENDOR_ID:
      return kVendor;
    case VIRTIO_MMIO_DEVICE_FEATURES:
      return core_->device_features(device_features_page_);
    case VIRTIO_MMIO_QUEUE_NUM_MAX:
      return core_->queue(queue_).max_size;
    case VIRTIO_MMIO_QUEUE_READY:
      return core_->queue(queue_).ready ? 1 : 0;
    case VIRTIO_MMIO_INTERRUPT_STATUS:
      return interrupt_status_;
    case VIRTIO_MMIO_STATUS:
      return core_->status();
    case VIRTIO_MMIO_SHM_LEN_LOW:
    case VIRTIO_MMIO_SHM_LEN_HIGH:
    case VIRTIO_MMIO_SHM_BASE_LOW:
    case VIRTIO_MMIO_SHM_BASE_HIGH:
      return read_shared_memory_register(offset);
    case VIRTIO_MMIO_CONFIG_GENERATION:
      return core_->config_generation();
    default:
      return 0;
  }
}

std::uint32_t MmioTransport::read_shared_memory_register(std::uint64_t offset) const {
  const bool present = shared_memory_ && shared_memory_->id == shared_memory_id_;
  const std::uint64_t length = present ? shared_memory_->host.size() : kNoSharedMemory;
  const std::uint64_t base = present ? shared_memory_at_.value() : kNoSharedMemory;
  switch (offset) {
    case VIRTIO_MMIO_SHM_LEN_LOW:
      return static_cast<std::uint32_t>(length);
    case VIRTIO_MMIO_SHM_LEN_HIGH:
      return static_cast<std::uint32_t>(length >> 32);
    case VIRTIO_MMIO_SHM_BASE_LOW:
      return static_cast<std::uint32_t>(base);
    default:
      return static_cast<std::uint32_t>(base >> 32);
  }
}

void MmioTransport::write_register(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
    case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
      device_features_page_ = value;
      break;
    case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
      driver_features_page_ = value;
      break;
    case VIRTIO_MMIO_DRIVER_FEATURES:
      core_->set_driver_features(driver_features_page_, value);
      break;
    case VIRTIO_MMIO_QUEUE_SEL:
      queue_ = value;
      break;
    case VIRTIO_MMIO_SHM_SEL:
      shared_memory_id_ = value;
      break;
    case VIRTIO_MMIO_QUEUE_NOTIFY:
      core_->notify(value);
      break;
    case VIRTIO_MMIO_INTERRUPT_ACK:
      interrupt_status_ &= ~value;
      break;
    case VIRTIO_MMIO_STATUS:
      core_->write_status(value);
      // Unless a vCPU that waits for reactors kept the device from being reset.
      if (value == 0 && core_->status() == 0) {
        interrupt_status_ = 0;
      }
      break;
    default:
      write_queue_register(offset, value);
      break;
  }
}

void MmioTransport::write_queue_register(std::uint64_t offset, std::uint32_t value) {
  core_->configure_queue(queue_, [offset, value](QueueConfig& config) {
    switch (offset) {
      case VIRTIO_MMIO_QUEUE_NUM:
        // What is no size fails when the queue is used.
        config.size = value <= config.max_size ? static_cast<std::uint16_t>(value) : 0;
        break;
      case VIRTIO_MMIO_QUEUE_READY:
        config.ready = (value & 1) != 0;
        break;
      case VIRTIO_MMIO_QUEUE_DESC_LOW:
        config.desc_table = with_low_half(config.desc_table, value);
        break;
      case VIRTIO_MMIO_QUEUE_DESC_HIGH:
        config.desc_table = with_high_half(config.desc_table, value);
        break;
      case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
        config.avail_ring = with_low_half(config.avail_ring, value);
        break;
      case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
        config.avail_ring = with_high_half(config.avail_ring, value);
        break;
      case VIRTIO_MMIO_QUEUE_USED_LOW:
        config.used_ring = with_low_half(config.used_ring, value);
        break;
      case VIRTIO_MMIO_QUEUE_USED_HIGH:
        config.used_ring = with_high_half(config.used_ring, value);
        break;
      default:
        break;
    }
  });
}

void MmioTransport::raise_queue(unsigned /*index*/) {
  raise(VIRTIO_MMIO_INT_VRING);
}

void MmioTransport::raise_config() {
  raise(VIRTIO_MMIO_INT_CONFIG);
}

void MmioTransport::raise(std::uint32_t cause) {
  interrupt_status_ |= cause;
  line_.raise();
}

}  // namespace vireo
