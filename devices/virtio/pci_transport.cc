// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/pci_transport.h"

#include <algorithm>
#include <cstddef>

#include <linux/pci_regs.h>

#include <fmt/core.h>

#include "devices/virtio/transport_state.h"
#include "devices/virtio/uapi.h"
#include "src/base/endian.h"

namespace vireo {

namespace {

// linux/pci_ids.h is no header of the kernel's interface.
constexpr std::uint16_t PCI_VENDOR_ID_REDHAT_QUMRANET = 0x1af4;
constexpr std::uint16_t PCI_CLASS_STORAGE_SCSI = 0x0100;
constexpr std::uint16_t PCI_CLASS_NETWORK_ETHERNET = 0x0200;
constexpr std::uint16_t PCI_CLASS_OTHERS = 0xff00;
/// §4.1.2: the device id is this plus the virtio device id.
constexpr std::uint16_t kModernDeviceId = 0x1040;
constexpr std::uint8_t kModernRevision = 1;

constexpr unsigned kBar = 0;
constexpr unsigned kMsixBar = 2;
constexpr unsigned kSharedMemoryBar = 4;
constexpr std::uint32_t kCommon = 0x0000;
constexpr std::uint32_t kIsr = 0x1000;
constexpr std::uint32_t kDeviceConfig = 0x2000;
constexpr std::uint32_t kNotify = 0x3000;
constexpr std::uint32_t kBarSize = 0x4000;
constexpr std::uint32_t kStructureMax = 0x1000;
constexpr std::uint32_t kNotifyOffMultiplier = 4;
/// §4.1.5.2: what a driver notifies with, without VIRTIO_F_NOTIFICATION_DATA.
constexpr unsigned kNotifyWidth = 2;

constexpr std::uint8_t kIsrQueue = 0x1;  // §4.1.4.5, beside VIRTIO_PCI_ISR_CONFIG

/// What follows the header of a vendor capability, §4.1.4.
struct CapabilityBody {
  std::uint8_t cap_len = 0;
  std::uint8_t cfg_type = 0;
  std::uint8_t bar = 0;
  std::uint8_t id = 0;
  std::array<std::uint8_t, 2> padding = {};
  le32 offset;
  le32 length;
};
constexpr unsigned kHeaderSize = PCI_CAP_LIST_NEXT + 1;
static_assert(sizeof(CapabilityBody) + kHeaderSize == sizeof(virtio_pci_cap) &&
              offsetof(CapabilityBody, length) + kHeaderSize == VIRTIO_PCI_CAP_LENGTH);
/// Behind the body, the data of VIRTIO_PCI_CAP_PCI_CFG.
constexpr unsigned kCfgDataOffset = offsetof(virtio_pci_cfg_cap, pci_cfg_data);
constexpr std::size_t kCfgDataSize = sizeof(virtio_pci_cfg_cap::pci_cfg_data);

std::uint16_t class_of(std::uint32_t type) {
  switch (type) {
    case VIRTIO_ID_NET:
      return PCI_CLASS_NETWORK_ETHERNET;
    case VIRTIO_ID_BLOCK:
      return PCI_CLASS_STORAGE_SCSI;
    default:
      return PCI_CLASS_OTHERS;
  }
}

PciFunction::Identity identity_of(const VirtioDevice& device) {
  const auto id = static_cast<std::uint16_t>(kModernDeviceId + device.type());
  return {.vendor = PCI_VENDOR_ID_REDHAT_QUMRANET,
          .device = id,
          .class_code = class_of(device.type()),
          .revision = kModernRevision,
          .subsystem_vendor = PCI_VENDOR_ID_REDHAT_QUMRANET,
          .subsystem = id};
}

/// A little-endian number of up to four bytes.
std::uint32_t number_of(std::span<const std::byte> data) {
  std::array<std::byte, sizeof(le32)> bytes = {};
  std::ranges::copy(data, bytes.begin());
  return std::bit_cast<le32>(bytes);
}

void put_number(std::span<std::byte> data, std::uint32_t value) {
  const auto bytes = std::bit_cast<std::array<std::byte, sizeof(le32)>>(le32(value));
  std::ranges::copy(std::span(bytes).first(data.size()), data.begin());
}

/// §4.1.4.3: what the driver has not changed is the greatest size.
std::uint16_t size_of(const QueueConfig& config) {
  return config.size == 0 ? config.max_size : config.size;
}

}  // namespace

// The function
// ----------------------------------------------------------------------------------

Result<std::unique_ptr<PciTransport>> PciTransport::create(VirtioDevice& device,
                                                           GuestMemory& memory,
                                                           std::span<Reactor* const> reactors,
                                                           MsiRouter& router) {
  auto transport = std::unique_ptr<PciTransport>(new PciTransport(device));
  const auto queues = static_cast<unsigned>(device.queue_max_sizes().size());
  TRY_ASSIGN(transport->msix_, Msix::create(queues + 1, router));
  TRY_ASSIGN(
      transport->core_,
      VirtioTransport::create(
          {.device = device, .memory = memory, .interrupts = *transport, .reactors = reactors}));
  transport->build_function(device);
  return transport;
}

PciTransport::PciTransport(const VirtioDevice& device)
    : function_(identity_of(device)),
      config_vector_(VIRTIO_MSI_NO_VECTOR),
      queue_vectors_(device.queue_max_sizes().size()) {
  std::ranges::fill(queue_vectors_, VIRTIO_MSI_NO_VECTOR);
}

void PciTransport::build_function(const VirtioDevice& device) {
  function_.add_bar(kBar, kBarSize, *this);
  add_capability(VIRTIO_PCI_CAP_COMMON_CFG,
                 {.offset = kCommon, .length = sizeof(virtio_pci_common_cfg)});
  add_capability(VIRTIO_PCI_CAP_ISR_CFG, {.offset = kIsr, .length = 1});
  if (const auto size = static_cast<std::uint32_t>(device.config().size()); size > 0) {
    CHECK(size <= kStructureMax);
    add_capability(VIRTIO_PCI_CAP_DEVICE_CFG, {.offset = kDeviceConfig, .length = size});
  }
  const std::uint32_t notify_size = kNotifyOffMultiplier * core_->queue_count();
  CHECK(notify_size <= kStructureMax);
  const le32 multiplier = kNotifyOffMultiplier;
  add_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, {.offset = kNotify, .length = notify_size},
                 std::as_bytes(std::span(&multiplier, 1)));
  for (unsigned index = 0; index < core_->queue_count(); ++index) {
    function_.add_doorbell({.bar = kBar,
                            .offset = kNotify + std::uint64_t{kNotifyOffMultiplier} * index,
                            .width = kNotifyWidth,
                            .fd = core_->kick_fd(index)});
  }
  config_access_.capability =
      add_capability(VIRTIO_PCI_CAP_PCI_CFG, {}, std::array<std::byte, kCfgDataSize>{});
  function_.set_window(config_access_.capability + kCfgDataOffset, config_access_);
  function_.add_msix(kMsixBar, *msix_);
  if (const std::optional<SharedMemoryRegion> region = device.shared_memory()) {
    function_.add_memory_bar(kSharedMemoryBar, region->host);
    const auto low = static_cast<std::uint32_t>(region->host.size());
    // §4.1.4.7: behind the body, the upper halves of offset and length.
    const std::array<le32, 2> high = {0, static_cast<std::uint32_t>(region->host.size() >> 32)};
    add_capability(VIRTIO_PCI_CAP_SHARED_MEMORY_CFG,
                   {.bar = kSharedMemoryBar, .id = region->id, .length = low},
                   std::as_bytes(std::span(high)));
  }
}

/// A vendor capability with `more` behind it; returns where it is.
unsigned PciTransport::add_capability(std::uint8_t type, const Structure& structure,
                                      std::span<const std::byte> more) {
  const CapabilityBody body = {
      .cap_len = static_cast<std::uint8_t>(kHeaderSize + sizeof(CapabilityBody) + more.size()),
      .cfg_type = type,
      .bar = structure.bar,
      .id = structure.id,
      .offset = structure.offset,
      .length = structure.length};
  // §4.1.4.9: of the window the driver says where it leads.
  const CapabilityBody all = {.bar = 0xff, .offset = 0xffffffff, .length = 0xffffffff};
  const CapabilityBody writable = type == VIRTIO_PCI_CAP_PCI_CFG ? all : CapabilityBody{};
  const auto bytes = std::as_bytes(std::span(&body, 1));
  std::vector<std::byte> whole(bytes.begin(), bytes.end());
  whole.insert(whole.end(), more.begin(), more.end());
  return function_.add_capability(PCI_CAP_ID_VNDR, whole, std::as_bytes(std::span(&writable, 1)));
}

// The window from the configuration space
// -------------------------------------------------------

/// What the capability's fields lead to; nothing where they lead nowhere.
std::optional<PciTransport::ConfigAccess::Place> PciTransport::ConfigAccess::place() const {
  const auto field = [this](unsigned at, std::size_t width) {
    std::array<std::byte, sizeof(le32)> bytes = {};
    transport.function_.read_config(capability + at, std::span(bytes).first(width));
    return number_of(bytes);
  };
  const std::uint32_t bar = field(VIRTIO_PCI_CAP_BAR, 1);
  const std::uint32_t offset = field(VIRTIO_PCI_CAP_OFFSET, sizeof(le32));
  const std::uint32_t length = field(VIRTIO_PCI_CAP_LENGTH, sizeof(le32));
  if (bar >= PCI_STD_NUM_BARS || (length != 1 && length != 2 && length != kCfgDataSize) ||
      offset % length != 0) {
    return std::nullopt;
  }
  const PciFunction::Bar& target = transport.function_.bar(bar);
  if (target.device == nullptr || target.size < length || offset > target.size - length) {
    return std::nullopt;
  }
  return Place{.device = target.device, .offset = offset, .length = length};
}

void PciTransport::ConfigAccess::read(std::uint64_t offset, std::span<std::byte> data) {
  std::array<std::byte, kCfgDataSize> bytes = {};
  if (const std::optional<Place> there = place()) {
    there->device->read(there->offset, std::span(bytes).first(there->length));
  }
  std::ranges::copy(std::span(bytes).subspan(offset, data.size()), data.begin());
}

void PciTransport::ConfigAccess::write(std::uint64_t offset, std::span<const std::byte> data) {
  const std::optional<Place> there = place();
  if (there && offset == 0 && data.size() >= there->length) {
    there->device->write(there->offset, data.first(there->length));
  }
}

// BAR 0
// -----------------------------------------------------------------------------------------

void PciTransport::read(std::uint64_t offset, std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{0});
  if (offset >= kNotify) {
    return;
  }
  if (offset >= kDeviceConfig) {
    core_->read_config(offset - kDeviceConfig, data);
  } else if (offset >= kIsr) {
    if (offset == kIsr) {
      data[0] = std::byte{isr_.exchange(0)};  // §4.1.4.5: reading it acknowledges
    }
  } else if (data.size() <= sizeof(le32)) {
    put_number(data, read_common(offset - kCommon, data.size()));
  }
}

void PciTransport::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset >= kNotify) {
    if ((offset - kNotify) % kNotifyOffMultiplier == 0) {
      core_->notify(static_cast<std::uint32_t>((offset - kNotify) / kNotifyOffMultiplier));
    }
  } else if (offset < kIsr && data.size() <= sizeof(le32)) {
    write_common(offset - kCommon, data.size(), number_of(data));
  }
}

// §4.1.3.1: the driver uses accesses of a field's width, for those of 64 bits two of 32. Others
// find nothing.

std::uint32_t PciTransport::read_common(std::uint64_t offset, std::size_t width) const {
  switch (width) {
    case 1:
      return read_common_8(offset);
    case 2:
      return read_common_16(offset);
    default:
      return read_common_32(offset);
  }
}

std::uint32_t PciTransport::read_common_8(std::uint64_t offset) const {
  switch (offset) {
    case VIRTIO_PCI_COMMON_STATUS:
      return core_->status();
    case VIRTIO_PCI_COMMON_CFGGENERATION:
      return core_->config_generation();
    default:
      return 0;
  }
}

std::uint32_t PciTransport::read_common_16(std::uint64_t offset) const {
  const std::uint16_t queue = queue_;
  const bool present = queue < queue_vectors_.size();
  switch (offset) {
    case VIRTIO_PCI_COMMON_MSIX:
      return config_vector_;
    case VIRTIO_PCI_COMMON_NUMQ:
      return core_->queue_count();
    case VIRTIO_PCI_COMMON_Q_SELECT:
      return queue;
    case VIRTIO_PCI_COMMON_Q_SIZE:
      return size_of(core_->queue(queue));
    case VIRTIO_PCI_COMMON_Q_MSIX:
      return present ? queue_vectors_[queue].load() : VIRTIO_MSI_NO_VECTOR;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
      return core_->queue(queue).ready ? 1 : 0;
    case VIRTIO_PCI_COMMON_Q_NOFF:
      return present ? queue : 0;
    default:
      return 0;
  }
}

std::uint32_t PciTransport::read_common_32(std::uint64_t offset) const {
  const QueueConfig queue = core_->queue(queue_);
  switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT:
      return device_features_page_;
    case VIRTIO_PCI_COMMON_DF:
      return core_->device_features(device_features_page_);
    case VIRTIO_PCI_COMMON_GFSELECT:
      return driver_features_page_;
    case VIRTIO_PCI_COMMON_GF:
      return core_->driver_features(driver_features_page_);
    case VIRTIO_PCI_COMMON_Q_DESCLO:
      return low_half(queue.desc_table);
    case VIRTIO_PCI_COMMON_Q_DESCHI:
      return high_half(queue.desc_table);
    case VIRTIO_PCI_COMMON_Q_AVAILLO:
      return low_half(queue.avail_ring);
    case VIRTIO_PCI_COMMON_Q_AVAILHI:
      return high_half(queue.avail_ring);
    case VIRTIO_PCI_COMMON_Q_USEDLO:
      return low_half(queue.used_ring);
    case VIRTIO_PCI_COMMON_Q_USEDHI:
      return high_half(queue.used_ring);
    default:
      return 0;
  }
}

void PciTransport::write_common(std::uint64_t offset, std::size_t width, std::uint32_t value) {
  if (width == sizeof(le32)) {
    write_common_32(offset, value);
  } else if (width == sizeof(le16)) {
    write_common_16(offset, static_cast<std::uint16_t>(value));
  } else if (offset == VIRTIO_PCI_COMMON_STATUS) {
    write_status(static_cast<std::uint8_t>(value));
  }
}

void PciTransport::write_status(std::uint8_t value) {
  core_->write_status(value);
  // Unless a vCPU that waits for reactors kept the device from being reset.
  if (value == 0 && core_->status() == 0) {
    forget_driver();
  }
}

void PciTransport::forget_driver() {
  config_vector_ = VIRTIO_MSI_NO_VECTOR;
  std::ranges::fill(queue_vectors_, VIRTIO_MSI_NO_VECTOR);
  isr_ = 0;
}

void PciTransport::power_cycle() {
  core_->power_cycle();
  forget_driver();
  device_features_page_ = 0;
  driver_features_page_ = 0;
  queue_ = 0;
}

void PciTransport::save(SnapshotWriter& writer, unsigned slot) {
  VirtioPciState state = {.device_features_page = device_features_page_,
                          .driver_features_page = driver_features_page_,
                          .queue = queue_,
                          .config_vector = {config_vector_},
                          .queue_vectors = {},
                          .isr = isr_};
  for (const std::atomic<std::uint16_t>& vector : queue_vectors_) {
    state.queue_vectors.push_back({vector});
  }
  writer.add(slot, std::move(state));
  core_->save(writer, slot);
}

Result<> PciTransport::restore(SnapshotReader& reader, unsigned slot) {
  Result<> restored = restore_registers(reader, slot);
  if (!restored) {
    power_cycle();
  }
  return restored;
}

Result<> PciTransport::restore_registers(SnapshotReader& reader, unsigned slot) {
  TRY_ASSIGN(const VirtioPciState state, reader.take<VirtioPciState>(slot));
  if (state.queue_vectors.size() != queue_vectors_.size()) {
    return bad_section<VirtioPciState>(
        slot, fmt::format("has vectors for {} queues, and the device here {}",
                          state.queue_vectors.size(), queue_vectors_.size()));
  }
  const auto cannot_be = [this](VirtioPciState::Vector vector) {
    return vector_or_none(vector.number) != vector.number;
  };
  if (cannot_be(state.config_vector) || std::ranges::any_of(state.queue_vectors, cannot_be)) {
    return bad_section<VirtioPciState>(slot, "has a vector beyond those of the function");
  }
  constexpr unsigned kCauses = kIsrQueue | VIRTIO_PCI_ISR_CONFIG;
  if ((state.isr & ~kCauses) != 0) {
    return bad_section<VirtioPciState>(slot, fmt::format("has an ISR status of {:#x}", state.isr));
  }
  config_vector_ = state.config_vector.number;  // by which the driver may be told at once
  TRY(core_->restore(reader, slot));
  std::ranges::transform(state.queue_vectors, queue_vectors_.begin(),
                         &VirtioPciState::Vector::number);
  device_features_page_ = state.device_features_page;
  driver_features_page_ = state.driver_features_page;
  queue_ = state.queue;
  isr_ |= state.isr;
  return {};
}

void PciTransport::write_common_16(std::uint64_t offset, std::uint16_t value) {
  const std::uint16_t queue = queue_;
  switch (offset) {
    case VIRTIO_PCI_COMMON_MSIX:
      config_vector_ = vector_or_none(value);
      break;
    case VIRTIO_PCI_COMMON_Q_SELECT:
      queue_ = value;
      break;
    case VIRTIO_PCI_COMMON_Q_SIZE:
      // What is no size fails when the queue is used.
      core_->configure_queue(queue, [value](QueueConfig& config) { config.size = value; });
      break;
    case VIRTIO_PCI_COMMON_Q_MSIX:
      if (queue < queue_vectors_.size()) {
        queue_vectors_[queue] = vector_or_none(value);
      }
      break;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
      // §4.1.4.3.2: the driver writes nothing but 1; only a reset disables a queue.
      if (value == 1) {
        core_->configure_queue(queue, [](QueueConfig& config) {
          config.size = size_of(config);
          config.ready = true;
        });
      }
      break;
    default:
      break;
  }
}

void PciTransport::write_common_32(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT:
      device_features_page_ = value;
      return;
    case VIRTIO_PCI_COMMON_GFSELECT:
      driver_features_page_ = value;
      return;
    case VIRTIO_PCI_COMMON_GF:
      core_->set_driver_features(driver_features_page_, value);
      return;
    default:
      break;
  }
  core_->configure_queue(queue_, [offset, value](QueueConfig& config) {
    switch (offset) {
      case VIRTIO_PCI_COMMON_Q_DESCLO:
        config.desc_table = with_low_half(config.desc_table, value);
        break;
      case VIRTIO_PCI_COMMON_Q_DESCHI:
        config.desc_table = with_high_half(config.desc_table, value);
        break;
      case VIRTIO_PCI_COMMON_Q_AVAILLO:
        config.avail_ring = with_low_half(config.avail_ring, value);
        break;
      case VIRTIO_PCI_COMMON_Q_AVAILHI:
        config.avail_ring = with_high_half(config.avail_ring, value);
        break;
      case VIRTIO_PCI_COMMON_Q_USEDLO:
        config.used_ring = with_low_half(config.used_ring, value);
        break;
      case VIRTIO_PCI_COMMON_Q_USEDHI:
        config.used_ring = with_high_half(config.used_ring, value);
        break;
      default:
        break;
    }
  });
}

/// §4.1.5.1.2.1: a vector that cannot be had reads back as none.
std::uint16_t PciTransport::vector_or_none(std::uint16_t vector) const {
  return vector < msix_->vectors() ? vector : VIRTIO_MSI_NO_VECTOR;
}

// Interrupts
// ------------------------------------------------------------------------------------

void PciTransport::raise_queue(unsigned index) {
  raise(kIsrQueue, queue_vectors_[index]);
}

void PciTransport::raise_config() {
  raise(VIRTIO_PCI_ISR_CONFIG, config_vector_);
}

void PciTransport::raise(std::uint8_t cause, std::uint16_t vector) {
  isr_ |= cause;
  if (vector != VIRTIO_MSI_NO_VECTOR) {
    msix_->raise(vector);
  }
}

}  // namespace vireo
