// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/pci_transport.h"

#include <map>
#include <utility>

#include <poll.h>

#include "devices/rng/rng_device.h"
#include "tests/support/catch.h"
#include "tests/support/fake_guest.h"
#include "tests/support/pci_driver.h"
#include "tests/virtio/idle_device.h"

namespace vireo {
namespace {

constexpr std::uint32_t kAlive = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

struct Fixture {
  FakeGuest guest{1};
  IdleDevice device;
  PciDriver driver{guest, device};
};

TEST_CASE("virtio-pci: the function is a modern one of its type") {
  Fixture f;
  CHECK(f.driver.config_read<std::uint16_t>(PCI_VENDOR_ID) == 0x1af4);
  CHECK(f.driver.config_read<std::uint16_t>(PCI_DEVICE_ID) == 0x1041);
  CHECK(f.driver.config_read<std::uint8_t>(PCI_REVISION_ID) == 1);
  CHECK(f.driver.config_read<std::uint16_t>(PCI_CLASS_DEVICE) == 0x0200);
  CHECK(f.driver.config_read<std::uint16_t>(PCI_SUBSYSTEM_ID) >= 0x40);
  CHECK(f.driver.config_read<std::uint8_t>(PCI_INTERRUPT_PIN) == 0);
}

TEST_CASE("virtio-pci: each capability names a structure of its own inside a BAR") {
  Fixture f;
  const std::map<std::uint8_t, std::pair<unsigned, std::uint32_t>> wanted = {
      {VIRTIO_PCI_CAP_COMMON_CFG, {sizeof(virtio_pci_cap), sizeof(virtio_pci_common_cfg)}},
      {VIRTIO_PCI_CAP_NOTIFY_CFG, {sizeof(virtio_pci_notify_cap), 2 * 4}},
      {VIRTIO_PCI_CAP_ISR_CFG, {sizeof(virtio_pci_cap), 1}},
      {VIRTIO_PCI_CAP_DEVICE_CFG, {sizeof(virtio_pci_cap), 6}},
      {VIRTIO_PCI_CAP_PCI_CFG, {sizeof(virtio_pci_cfg_cap), 0}},
  };
  std::map<std::uint64_t, std::uint64_t> taken;  // end → start
  for (const auto& [type, expected] : wanted) {
    INFO("type " << unsigned{type});
    const std::uint64_t at = f.driver.find_capability(PCI_CAP_ID_VNDR, type);
    REQUIRE(at != 0);
    CHECK(f.driver.config_read<std::uint8_t>(at + VIRTIO_PCI_CAP_LEN) == expected.first);
    const auto length = f.driver.config_read<std::uint32_t>(at + VIRTIO_PCI_CAP_LENGTH);
    const auto offset = f.driver.config_read<std::uint32_t>(at + VIRTIO_PCI_CAP_OFFSET);
    CHECK(length == expected.second);
    const unsigned bar = f.driver.config_read<std::uint8_t>(at + VIRTIO_PCI_CAP_BAR);
    CHECK(offset + std::uint64_t{length} <= f.driver.bar_size(bar));
    if (length > 0) {
      const auto next = taken.upper_bound(offset);
      CHECK((next == taken.end() || next->second >= offset + length));
      taken[offset + length] = offset;
    }
    // Only where the window leads is the driver's to say.
    for (std::uint64_t field = at; field < at + expected.first; field += 4) {
      const auto before = f.driver.config_read<std::uint32_t>(field);
      f.driver.config_write(field, ~before);
      CHECK(
          (type == VIRTIO_PCI_CAP_PCI_CFG || f.driver.config_read<std::uint32_t>(field) == before));
    }
  }
  const std::uint64_t notify = f.driver.find_capability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_NOTIFY_CFG);
  CHECK(f.driver.config_read<std::uint32_t>(notify + VIRTIO_PCI_NOTIFY_CAP_MULT) == 4);
}

TEST_CASE("virtio-pci: a device without a configuration space has no capability for one") {
  FakeGuest guest(1);
  RngDevice device;
  PciDriver driver(guest, device);
  CHECK(driver.find_capability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_DEVICE_CFG) == 0);
}

TEST_CASE("virtio-pci: the queues' registers") {
  Fixture f;
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_NUMQ) == 2);
  CHECK(f.driver.max_size(0) == 64);
  CHECK(f.driver.max_size(1) == 256);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SELECT) == 1);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_NOFF) == 1);
  CHECK(f.driver.max_size(2) == 0);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_NOFF) == 0);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_MSIX) == VIRTIO_MSI_NO_VECTOR);
  f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_MSIX, 0);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE) == 0);

  f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SELECT, 1);
  std::uint32_t value = 0x11111111;
  for (std::uint64_t at = VIRTIO_PCI_COMMON_Q_DESCLO; at <= VIRTIO_PCI_COMMON_Q_USEDHI; at += 4) {
    f.driver.set_common<std::uint32_t>(at, value);
    value += 0x11111111;
  }
  const QueueConfig config = f.driver.core().queue(1);
  CHECK(config.desc_table == GuestAddress(0x2222222211111111));
  CHECK(config.avail_ring == GuestAddress(0x4444444433333333));
  CHECK(config.used_ring == GuestAddress(0x6666666655555555));
  CHECK(f.driver.common<std::uint32_t>(VIRTIO_PCI_COMMON_Q_DESCLO) == 0x11111111);
  CHECK(f.driver.common<std::uint32_t>(VIRTIO_PCI_COMMON_Q_USEDHI) == 0x66666666);
  f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SIZE, 16);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SIZE) == 16);

  for (const std::uint16_t wrong : std::to_array<std::uint16_t>({0, 2, 0xffff})) {
    f.driver.set_common(VIRTIO_PCI_COMMON_Q_ENABLE, wrong);
    CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE) == 0);
  }
  f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE, 0);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE) == 1);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SIZE) == 16);
  f.driver.reset();
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE) == 0);
  CHECK(f.driver.max_size(1) == 256);
}

TEST_CASE("virtio-pci: a driver may leave a queue at its greatest size, not above it") {
  for (const auto& [size, works] : {std::pair{0, true}, {128, true}, {512, false}, {100, false}}) {
    INFO("size " << size);
    Fixture f;
    f.driver.negotiate(0);
    f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SELECT, 1);
    if (size != 0) {
      f.driver.set_common(VIRTIO_PCI_COMMON_Q_SIZE, static_cast<std::uint16_t>(size));
    }
    const std::uint64_t ring = f.guest.allocate(std::uint64_t{64} << 10);
    for (const std::uint32_t part : {0U, 1U, 2U}) {
      f.driver.set_common(VIRTIO_PCI_COMMON_Q_DESCLO + std::uint64_t{8} * part,
                          static_cast<std::uint32_t>(ring + (part << 14)));
    }
    f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
    f.driver.set_status(kAlive | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
    CHECK(((f.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET) == 0) == works);
  }
}

TEST_CASE("virtio-pci: a vector that cannot be had reads back as none") {
  Fixture f;
  for (const std::uint64_t at :
       std::to_array<std::uint64_t>({VIRTIO_PCI_COMMON_MSIX, VIRTIO_PCI_COMMON_Q_MSIX})) {
    CHECK(f.driver.common<std::uint16_t>(at) == VIRTIO_MSI_NO_VECTOR);
    f.driver.set_common<std::uint16_t>(at, 2);
    CHECK(f.driver.common<std::uint16_t>(at) == 2);
    f.driver.set_common<std::uint16_t>(at, 3);
    CHECK(f.driver.common<std::uint16_t>(at) == VIRTIO_MSI_NO_VECTOR);
    f.driver.set_common<std::uint16_t>(at, 0);
    CHECK(f.driver.common<std::uint16_t>(at) == 0);
    f.driver.set_common<std::uint16_t>(at, VIRTIO_MSI_NO_VECTOR);
    CHECK(f.driver.common<std::uint16_t>(at) == VIRTIO_MSI_NO_VECTOR);
    f.driver.set_common<std::uint16_t>(at, 1);
    f.driver.reset();
    CHECK(f.driver.common<std::uint16_t>(at) == VIRTIO_MSI_NO_VECTOR);
  }
}

TEST_CASE("virtio-pci: the configuration space, its generation, and what a change sends") {
  Fixture f;
  const std::uint64_t config = f.driver.structure(VIRTIO_PCI_CAP_DEVICE_CFG);
  CHECK(f.driver.read<std::uint32_t>(config) == 0x04030201);
  CHECK(f.driver.read<std::uint16_t>(config + 4) == 0x0605);
  CHECK(f.driver.read<std::uint64_t>(config + 4) == 0x0605);
  CHECK(f.driver.read<std::uint8_t>(config + 0xfff) == 0);
  f.driver.begin(0);
  const auto generation = f.driver.common<std::uint8_t>(VIRTIO_PCI_COMMON_CFGGENERATION);
  f.driver.core().publish_config(std::array{std::byte{9}});
  CHECK(f.driver.read<std::uint32_t>(config) == 9);
  CHECK(f.driver.common<std::uint8_t>(VIRTIO_PCI_COMMON_CFGGENERATION) == generation + 1);
  CHECK(f.driver.router().messages(PciDriver::kFirstMessage) == 1);
  // §4.1.4.5: reading the ISR status acknowledges.
  const std::uint64_t isr = f.driver.structure(VIRTIO_PCI_CAP_ISR_CFG);
  CHECK(f.driver.read<std::uint8_t>(isr) == VIRTIO_PCI_ISR_CONFIG);
  CHECK(f.driver.read<std::uint8_t>(isr) == 0);
  f.driver.core().publish_config(std::array{std::byte{10}});
  f.driver.reset();
  CHECK(f.driver.read<std::uint8_t>(isr) == 0);
}

TEST_CASE("virtio-pci: accesses that are not of a field's width find nothing") {
  Fixture f;
  f.driver.set_status(kAlive);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_STATUS) == 0);
  CHECK(f.driver.common<std::uint32_t>(VIRTIO_PCI_COMMON_STATUS) == 0);
  CHECK(f.driver.common<std::uint8_t>(VIRTIO_PCI_COMMON_NUMQ) == 0);
  CHECK(f.driver.common<std::uint32_t>(VIRTIO_PCI_COMMON_MSIX) == 0);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_DF) == 0);
  CHECK(f.driver.common<std::uint32_t>(VIRTIO_PCI_COMMON_DF + 1) == 0);
  CHECK(f.driver.common<std::uint64_t>(VIRTIO_PCI_COMMON_DFSELECT) == 0);
  f.driver.set_common<std::uint32_t>(VIRTIO_PCI_COMMON_STATUS, 0);
  f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_STATUS, 0);
  CHECK(f.driver.status() == kAlive);
  f.driver.set_common<std::uint64_t>(VIRTIO_PCI_COMMON_Q_DESCLO, 0x1000);
  f.driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_DESCLO, 0x1000);
  f.driver.set_common<std::uint32_t>(VIRTIO_PCI_COMMON_Q_DESCLO + 2, 0x1000);
  CHECK(f.driver.core().queue(0).desc_table == GuestAddress(0));
  f.driver.set_common<std::uint8_t>(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  f.driver.set_common<std::uint32_t>(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  CHECK_FALSE(f.driver.core().queue(0).ready);
  f.driver.set_common<std::uint8_t>(VIRTIO_PCI_COMMON_MSIX, 1);
  CHECK(f.driver.common<std::uint16_t>(VIRTIO_PCI_COMMON_MSIX) == VIRTIO_MSI_NO_VECTOR);
}

TEST_CASE("virtio-pci: the window of the configuration space reaches the BARs") {
  Fixture f;
  const std::uint64_t at = f.driver.find_capability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_PCI_CFG);
  const std::uint64_t data = at + offsetof(virtio_pci_cfg_cap, pci_cfg_data);
  const auto aim = [&](std::uint8_t bar, std::uint32_t offset, std::uint32_t length) {
    f.driver.config_write(at + VIRTIO_PCI_CAP_BAR, bar);
    f.driver.config_write(at + VIRTIO_PCI_CAP_OFFSET, offset);
    f.driver.config_write(at + VIRTIO_PCI_CAP_LENGTH, length);
  };
  // It works while the BARs do not.
  f.driver.config_write<std::uint16_t>(PCI_COMMAND, 0);
  aim(0, VIRTIO_PCI_COMMON_NUMQ, 2);
  CHECK(f.driver.config_read<std::uint16_t>(data) == 2);
  CHECK(f.driver.config_read<std::uint32_t>(data) == 2);
  aim(0, VIRTIO_PCI_COMMON_STATUS, 1);
  f.driver.config_write<std::uint8_t>(data, VIRTIO_CONFIG_S_ACKNOWLEDGE);
  CHECK(f.driver.config_read<std::uint8_t>(data) == VIRTIO_CONFIG_S_ACKNOWLEDGE);
  f.driver.config_write<std::uint8_t>(data + 1, 0);
  CHECK(f.driver.config_read<std::uint8_t>(data) == VIRTIO_CONFIG_S_ACKNOWLEDGE);
  f.driver.config_write<std::uint8_t>(data, 0);
  CHECK(f.driver.config_read<std::uint8_t>(data) == 0);
  aim(2, PCI_MSIX_ENTRY_DATA, 4);
  CHECK(f.driver.config_read<std::uint32_t>(data) == PciDriver::kFirstMessage);
  f.driver.config_write<std::uint32_t>(data, 0x99);
  CHECK(f.driver.config_read<std::uint32_t>(data) == 0x99);
  f.driver.config_write<std::uint16_t>(data, 0x77);  // narrower than it said
  CHECK(f.driver.config_read<std::uint32_t>(data) == 0x99);

  // Where it leads nowhere.
  struct Nowhere {
    std::uint8_t bar;
    std::uint32_t offset;
    std::uint32_t length;
  };
  for (const Nowhere& where : {Nowhere{1, 0, 4},
                               {6, 0, 4},
                               {255, 0, 4},
                               {2, 0x1000, 4},
                               {2, 0xfffffffc, 4},
                               {2, 8, 0},
                               {2, 8, 3},
                               {2, 8, 8},
                               {2, 10, 4},
                               {2, 8, 0xffffffff}}) {
    INFO("BAR " << unsigned{where.bar} << ' ' << where.offset << ' ' << where.length);
    aim(where.bar, where.offset, where.length);
    CHECK(f.driver.config_read<std::uint32_t>(data) == 0);
    f.driver.config_write<std::uint32_t>(data, 0x55555555);
  }
  aim(2, PCI_MSIX_ENTRY_DATA, 4);
  CHECK(f.driver.config_read<std::uint32_t>(data) == 0x99);
  // The rest of the capability is read-only.
  f.driver.config_write<std::uint32_t>(at, 0xffffffff);
  CHECK(f.driver.find_capability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_PCI_CFG) == at);
}

TEST_CASE("virtio-pci: notifications come by the doorbell, and without one") {
  FakeGuest guest(1);
  RngDevice device;
  PciDriver driver(guest, device);
  driver.begin(kEventIdx);
  const std::uint64_t data = guest.allocate(4096);
  CHECK(driver.pci_host().count() == 1);
  driver.queue(0).add({{data, 16, true}});
  driver.kick(0);
  CHECK(driver.wait_used(0).length == 16);
  // The BAR moves while the device is in use, first to where a doorbell can hang.
  driver.move_bar(0, PciDriver::kWindow + 0x100000);
  const std::uint64_t notify = driver.structure(VIRTIO_PCI_CAP_NOTIFY_CFG);
  CHECK(driver.pci_host().fd_at(notify, 2) == driver.core().kick_fd(0));
  driver.pci_host().full = true;
  driver.move_bar(0, PciDriver::kWindow + 0x200000);
  CHECK(driver.pci_host().count() == 0);
  driver.queue(0).add({{data, 32, true}});
  driver.kick(0);
  CHECK(driver.wait_used(0).length == 32);
}

TEST_CASE("virtio-pci: each queue has its notification, and what lies between is nobody's") {
  Fixture f;
  const auto notified = [&](unsigned index) {
    pollfd waiting = {.fd = f.driver.core().kick_fd(index), .events = POLLIN, .revents = 0};
    return ::poll(&waiting, 1, 0) == 1;
  };
  const std::uint64_t notify = f.driver.structure(VIRTIO_PCI_CAP_NOTIFY_CFG);
  for (const std::uint64_t offset : std::to_array<std::uint64_t>({2, 5, 8, 0xffc})) {
    f.driver.write<std::uint16_t>(notify + offset, 0);
  }
  CHECK(f.driver.read<std::uint16_t>(notify) == 0);
  CHECK_FALSE(notified(0));
  CHECK_FALSE(notified(1));
  f.driver.write<std::uint32_t>(notify + 4, 1);
  CHECK_FALSE(notified(0));
  CHECK(notified(1));
  f.driver.write<std::uint16_t>(notify, 0);
  CHECK(notified(0));
}

TEST_CASE("virtio-pci: a driver without MSI-X polls") {
  FakeGuest guest(1);
  RngDevice device;
  PciDriver driver(guest, device, false);
  driver.begin(kEventIdx);
  const std::uint64_t data = guest.allocate(4096);
  for (int round = 0; round < 10; ++round) {
    driver.queue(0).add({{data, 16, true}});
    driver.kick(0);
    CHECK(driver.wait_used(0).length == 16);
  }
  CHECK(driver.router().told() == 0);
}

TEST_CASE("virtio-pci: a message that was masked comes when the mask is lifted") {
  FakeGuest guest(1);
  RngDevice device;
  PciDriver driver(guest, device);
  driver.begin(0);
  const std::uint64_t control = driver.msix_entry(1) + PCI_MSIX_ENTRY_VECTOR_CTRL;
  driver.write<std::uint32_t>(control, PCI_MSIX_ENTRY_CTRL_MASKBIT);
  driver.queue(0).add({{guest.allocate(64), 64, true}});
  driver.kick(0);
  const std::uint64_t pba = driver.bar_address(2) + driver.bar_size(2) / 2;
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (driver.read<std::uint8_t>(pba) != 1U << 1 && std::chrono::steady_clock::now() < limit) {
    std::this_thread::yield();
  }
  CHECK(driver.read<std::uint8_t>(pba) == 1U << 1);
  CHECK(driver.interrupts(0) == 0);
  driver.write<std::uint32_t>(control, 0);
  CHECK(driver.interrupts(0) == 1);
  CHECK(driver.read<std::uint8_t>(pba) == 0);
}

}  // namespace
}  // namespace vireo
