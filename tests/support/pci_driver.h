// SPDX-License-Identifier: Apache-2.0
// A driver over virtio-pci, for tests: alone on a bus of its own, it finds the function and what
// there is of it through the ECAM as a guest does.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <linux/pci_regs.h>

#include "devices/pci/root.h"
#include "devices/virtio/pci_transport.h"
#include "tests/support/fake_guest.h"
#include "tests/support/fake_pci.h"

namespace vireo {

class PciDriver final : public VirtioDriver {
 public:
  static constexpr std::uint64_t kWindow = 0xd0000000;
  static constexpr std::uint64_t kWindowSize = 0x10000000;
  static constexpr unsigned kSlot = 5;
  /// The message of vector 0.
  static constexpr std::uint32_t kFirstMessage = 0x40;
  static constexpr std::uint16_t kConfigVector = 0;

  /// Without MSI-X it polls.
  PciDriver(FakeGuest& guest, VirtioDevice& device, bool msix = true)
      : VirtioDriver(guest), msix_(msix) {
    auto transport = PciTransport::create(device, guest.memory(), guest.reactors(), router_);
    REQUIRE(transport);
    transport_ = std::move(*transport);
    REQUIRE(root_.add(kSlot, transport_->function()));
    find_function();
    for (unsigned bar = 0; bar < PCI_STD_NUM_BARS; bar += 2) {
      place_bar(bar);
    }
    config_write<std::uint16_t>(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    if (msix_) {
      set_up_msix();
    }
  }
  ~PciDriver() override { reset(); }

  // Configuration space.
  template <typename T>
  T config_read(std::uint64_t offset) {
    return load<T>(root_.ecam(), config_ + offset);
  }
  template <typename T>
  void config_write(std::uint64_t offset, T value) {
    store<T>(root_.ecam(), config_ + offset, value);
  }
  /// Where the capability is; 0: there is none. `cfg_type` counts for vendor capabilities only.
  unsigned find_capability(std::uint8_t id, std::uint8_t cfg_type = 0) {
    REQUIRE((config_read<std::uint16_t>(PCI_STATUS) & PCI_STATUS_CAP_LIST) != 0);
    unsigned at = config_read<std::uint8_t>(PCI_CAPABILITY_LIST);
    for (int links = 0; at != 0 && links < 48; ++links) {
      if (config_read<std::uint8_t>(at) == id &&
          (id != PCI_CAP_ID_VNDR ||
           config_read<std::uint8_t>(at + VIRTIO_PCI_CAP_CFG_TYPE) == cfg_type)) {
        return at;
      }
      at = config_read<std::uint8_t>(at + PCI_CAP_LIST_NEXT);
    }
    return 0;
  }
  std::uint64_t bar_address(unsigned bar) {
    return config_read<std::uint64_t>(PCI_BASE_ADDRESS_0 + 4 * std::uint64_t{bar}) &
           PCI_BASE_ADDRESS_MEM_MASK;
  }
  std::uint64_t bar_size(unsigned bar) const { return bar_sizes_[bar]; }

  // Structures in BARs: the guest's address of each, and accesses.
  std::uint64_t structure(std::uint8_t cfg_type) {
    const unsigned at = find_capability(PCI_CAP_ID_VNDR, cfg_type);
    REQUIRE(at != 0);
    return bar_address(config_read<std::uint8_t>(at + VIRTIO_PCI_CAP_BAR)) +
           config_read<std::uint32_t>(at + VIRTIO_PCI_CAP_OFFSET);
  }
  template <typename T>
  T read(std::uint64_t address) {
    return load<T>(root_.mmio(), address - kWindow);
  }
  template <typename T>
  void write(std::uint64_t address, T value) {
    store<T>(root_.mmio(), address - kWindow, value);
  }
  template <typename T>
  T common(std::uint64_t offset) {
    return read<T>(common_ + offset);
  }
  template <typename T>
  void set_common(std::uint64_t offset, T value) {
    write<T>(common_ + offset, value);
  }
  std::uint64_t msix_entry(unsigned vector) {
    const std::uint32_t table = config_read<std::uint32_t>(find_capability(PCI_CAP_ID_MSIX) +
                                                           std::uint64_t{PCI_MSIX_TABLE});
    return bar_address(table & PCI_MSIX_TABLE_BIR) + (table & PCI_MSIX_TABLE_OFFSET) +
           std::uint64_t{PCI_MSIX_ENTRY_SIZE} * vector;
  }
  /// Puts a BAR elsewhere, as a guest that distributes resources anew.
  void move_bar(unsigned bar, std::uint64_t address) {
    config_write<std::uint32_t>(PCI_BASE_ADDRESS_0 + 4 * std::uint64_t{bar},
                                static_cast<std::uint32_t>(address));
    config_write<std::uint32_t>(PCI_BASE_ADDRESS_1 + 4 * std::uint64_t{bar},
                                static_cast<std::uint32_t>(address >> 32));
    find_structures();
  }

  // VirtioDriver.
  std::uint64_t offered() override {
    std::uint64_t features = 0;
    for (const std::uint32_t page : {1U, 0U}) {
      set_common<std::uint32_t>(VIRTIO_PCI_COMMON_DFSELECT, page);
      features = features << 32 | common<std::uint32_t>(VIRTIO_PCI_COMMON_DF);
    }
    return features;
  }
  void accept(std::uint64_t features) override {
    for (const unsigned page : {0U, 1U}) {
      set_common<std::uint32_t>(VIRTIO_PCI_COMMON_GFSELECT, page);
      set_common(VIRTIO_PCI_COMMON_GF, static_cast<std::uint32_t>(features >> (32 * page)));
    }
  }
  std::uint32_t status() override { return common<std::uint8_t>(VIRTIO_PCI_COMMON_STATUS); }
  void set_status(std::uint32_t status) override {
    set_common(VIRTIO_PCI_COMMON_STATUS, static_cast<std::uint8_t>(status));
  }
  void set_up_interrupts() override {
    if (msix_) {
      set_common(VIRTIO_PCI_COMMON_MSIX, kConfigVector);
      REQUIRE(common<std::uint16_t>(VIRTIO_PCI_COMMON_MSIX) == kConfigVector);
    }
  }
  std::uint16_t max_size(std::uint16_t index) override {
    set_common(VIRTIO_PCI_COMMON_Q_SELECT, index);
    return common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SIZE);
  }
  void enable_queue(std::uint16_t index, const QueueConfig& config) override {
    set_common(VIRTIO_PCI_COMMON_Q_SELECT, index);
    set_common(VIRTIO_PCI_COMMON_Q_SIZE, config.size);
    set_address(VIRTIO_PCI_COMMON_Q_DESCLO, config.desc_table);
    set_address(VIRTIO_PCI_COMMON_Q_AVAILLO, config.avail_ring);
    set_address(VIRTIO_PCI_COMMON_Q_USEDLO, config.used_ring);
    if (msix_) {
      const auto vector = static_cast<std::uint16_t>(index + 1);
      set_common(VIRTIO_PCI_COMMON_Q_MSIX, vector);
      REQUIRE(common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_MSIX) == vector);
    }
    set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
    find_queue(index);
  }
  void find_queues(std::uint16_t count) override {
    for (std::uint16_t index = 0; index < count; ++index) {
      set_common(VIRTIO_PCI_COMMON_Q_SELECT, index);
      find_queue(index);
    }
  }
  /// The one that is selected.
  void find_queue(std::uint16_t index) {
    const std::uint32_t multiplier =
        config_read<std::uint32_t>(find_capability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_NOTIFY_CFG) +
                                   std::uint64_t{VIRTIO_PCI_NOTIFY_CAP_MULT});
    notify_offsets_.resize(std::max<std::size_t>(notify_offsets_.size(), index + std::size_t{1}));
    notify_offsets_[index] =
        std::uint64_t{common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_NOFF)} * multiplier;
  }
  /// As KVM does it: a doorbell, where one hangs; else the access leaves the guest.
  void notify(std::uint16_t index) override {
    const std::uint64_t address = notify_ + notify_offsets_[index];
    if (const int fd = pci_host_.fd_at(address, sizeof(index)); fd >= 0) {
      signal_eventfd(fd);
    } else {
      write(address, index);
    }
  }
  int interrupts(std::uint16_t index) override {
    if (msix_) {
      return router_.messages(kFirstMessage + 1 + index);
    }
    poll();
    return polled_;
  }
  std::uint32_t acknowledge() override {
    if (!msix_) {
      poll();
      return std::exchange(causes_, 0);
    }
    const int before = std::exchange(config_messages_, router_.messages(kFirstMessage));
    return config_messages_ != before ? VIRTIO_MMIO_INT_CONFIG : 0;
  }
  VirtioTransport& core() override { return transport_->core(); }
  void save(SnapshotWriter& writer) override {
    root_.save(writer);
    transport_->save(writer, kSlot);
  }
  Result<> restore(SnapshotReader& reader) override {
    TRY(root_.restore(reader));
    return transport_->restore(reader, kSlot);
  }

  PciRoot& root() { return root_; }
  FakeMsiRouter& router() { return router_; }
  FakePciHost& pci_host() { return pci_host_; }

 private:
  void find_function() {
    for (unsigned slot = 0; slot < PciRoot::kSlots; ++slot) {
      config_ = std::uint64_t{slot} << 15;
      if (config_read<std::uint16_t>(PCI_VENDOR_ID) == 0x1af4) {
        return;
      }
    }
    FAIL("no virtio function on the bus");
  }
  /// Sizes the BAR, and puts it from the middle of the window on.
  void place_bar(unsigned bar) {
    const std::uint64_t at = PCI_BASE_ADDRESS_0 + 4 * std::uint64_t{bar};
    config_write<std::uint32_t>(at, 0xffffffff);
    config_write<std::uint32_t>(at + 4, 0xffffffff);
    const auto mask = config_read<std::uint64_t>(at) & PCI_BASE_ADDRESS_MEM_MASK;
    bar_sizes_[bar] = mask == 0 ? 0 : ~mask + 1;
    if (mask == 0) {
      return;
    }
    CHECK((config_read<std::uint32_t>(at) & ~PCI_BASE_ADDRESS_MEM_MASK &
           ~std::uint64_t{PCI_BASE_ADDRESS_MEM_PREFETCH}) == PCI_BASE_ADDRESS_MEM_TYPE_64);
    next_bar_ = (next_bar_ + bar_sizes_[bar] - 1) & mask;
    config_write(at, static_cast<std::uint32_t>(next_bar_));
    config_write(at + 4, static_cast<std::uint32_t>(next_bar_ >> 32));
    next_bar_ += bar_sizes_[bar];
    find_structures();
  }
  void find_structures() {
    common_ = structure(VIRTIO_PCI_CAP_COMMON_CFG);
    notify_ = structure(VIRTIO_PCI_CAP_NOTIFY_CFG);
    isr_ = structure(VIRTIO_PCI_CAP_ISR_CFG);
  }
  void set_up_msix() {
    const std::uint64_t control = find_capability(PCI_CAP_ID_MSIX) + std::uint64_t{PCI_MSIX_FLAGS};
    config_write<std::uint16_t>(control, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    const unsigned last = config_read<std::uint16_t>(control) & PCI_MSIX_FLAGS_QSIZE;
    for (unsigned vector = 0; vector <= last; ++vector) {
      const std::uint64_t entry = msix_entry(vector);
      write<std::uint32_t>(entry + PCI_MSIX_ENTRY_LOWER_ADDR, 0xfee00000);
      write<std::uint32_t>(entry + PCI_MSIX_ENTRY_UPPER_ADDR, 0);
      write<std::uint32_t>(entry + PCI_MSIX_ENTRY_DATA, kFirstMessage + vector);
      write<std::uint32_t>(entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
    }
    config_write<std::uint16_t>(control, PCI_MSIX_FLAGS_ENABLE);
  }
  void set_address(std::uint64_t low_register, GuestAddress address) {
    set_common(low_register, low_half(address));
    set_common(low_register + 4, high_half(address));
  }
  void poll() {
    const std::uint32_t causes = read<std::uint8_t>(isr_);
    causes_ |= causes;
    polled_ += causes != 0 ? 1 : 0;
  }

  const bool msix_;
  FakeMsiRouter router_;
  FakePciHost pci_host_;
  std::unique_ptr<PciTransport> transport_;
  PciRoot root_{*GuestRange::create(GuestAddress(kWindow), kWindowSize), pci_host_};
  std::uint64_t config_ = 0;  // where its configuration space is in the ECAM
  std::uint64_t next_bar_ = kWindow + kWindowSize / 2;
  std::array<std::uint64_t, PCI_STD_NUM_BARS> bar_sizes_ = {};
  // The guest's addresses of structures.
  std::uint64_t common_ = 0;
  std::uint64_t notify_ = 0;
  std::uint64_t isr_ = 0;
  std::vector<std::uint64_t> notify_offsets_;  // by queue
  int config_messages_ = 0;
  int polled_ = 0;
  std::uint32_t causes_ = 0;
};

}  // namespace vireo
