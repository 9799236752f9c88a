// SPDX-License-Identifier: Apache-2.0
// Memory that a device shares with its driver (virtio 1.2 §2.10), as each transport tells of it.
#include <sys/mman.h>

#include "src/base/fd.h"
#include "tests/support/catch.h"
#include "tests/support/fake_guest.h"
#include "tests/support/pci_driver.h"
#include "tests/virtio/idle_device.h"

namespace vireo {
namespace {

constexpr std::uint64_t kSize = std::uint64_t{2} << 20;
constexpr std::uint8_t kId = 7;

struct Fixture {
  Fixture()
      : room(std::move(*Mapping::create(kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                        -1, 0, "shared memory"))) {
    device.region = SharedMemoryRegion{.id = kId, .host = room.bytes()};
  }
  FakeGuest guest{1};
  Mapping room;
  IdleDevice device;
};

TEST_CASE("virtio-mmio: a shared memory region is found by its id") {
  Fixture f;
  constexpr GuestAddress kAt{0x12'0000'0000};
  MmioDriver driver(f.guest, f.device, kAt);
  const auto length = [&driver] {
    return std::uint64_t{driver.read(VIRTIO_MMIO_SHM_LEN_HIGH)} << 32 |
           driver.read(VIRTIO_MMIO_SHM_LEN_LOW);
  };
  const auto base = [&driver] {
    return std::uint64_t{driver.read(VIRTIO_MMIO_SHM_BASE_HIGH)} << 32 |
           driver.read(VIRTIO_MMIO_SHM_BASE_LOW);
  };
  for (const std::uint32_t id : {0U, 6U, 8U, 0xffU, 0x107U}) {
    driver.write(VIRTIO_MMIO_SHM_SEL, id);
    CHECK(length() == ~std::uint64_t{0});
    CHECK(base() == ~std::uint64_t{0});
  }
  driver.write(VIRTIO_MMIO_SHM_SEL, kId);
  CHECK(length() == kSize);
  CHECK(base() == kAt.value());

  SnapshotWriter saved;
  driver.save(saved);
  MmioDriver next(f.guest, f.device, kAt);
  REQUIRE(next.go_on({}, saved.sections()));
  CHECK(next.read(VIRTIO_MMIO_SHM_LEN_LOW) == kSize);
  next.transport().power_cycle();
  CHECK(next.read(VIRTIO_MMIO_SHM_LEN_LOW) == 0xffffffff);
}

TEST_CASE("virtio-mmio: a device without shared memory has none under any id") {
  FakeGuest guest(1);
  IdleDevice device;
  MmioDriver driver(guest, device);
  for (const std::uint32_t id : {0U, 1U, 0xffU}) {
    driver.write(VIRTIO_MMIO_SHM_SEL, id);
    CHECK(driver.read(VIRTIO_MMIO_SHM_LEN_LOW) == 0xffffffff);
    CHECK(driver.read(VIRTIO_MMIO_SHM_LEN_HIGH) == 0xffffffff);
  }
}

TEST_CASE("virtio-pci: a shared memory region is a BAR that the guest maps") {
  Fixture f;
  PciDriver driver(f.guest, f.device);
  const std::uint64_t at =
      driver.find_capability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_SHARED_MEMORY_CFG);
  REQUIRE(at != 0);
  CHECK(driver.config_read<std::uint8_t>(at + VIRTIO_PCI_CAP_LEN) == sizeof(virtio_pci_cap64));
  CHECK(driver.config_read<std::uint8_t>(at + offsetof(virtio_pci_cap, id)) == kId);
  CHECK(driver.config_read<std::uint32_t>(at + VIRTIO_PCI_CAP_OFFSET) == 0);
  CHECK(driver.config_read<std::uint32_t>(at + VIRTIO_PCI_CAP_LENGTH) == kSize);
  CHECK(driver.config_read<std::uint32_t>(at + offsetof(virtio_pci_cap64, offset_hi)) == 0);
  CHECK(driver.config_read<std::uint32_t>(at + offsetof(virtio_pci_cap64, length_hi)) == 0);
  const unsigned bar = driver.config_read<std::uint8_t>(at + VIRTIO_PCI_CAP_BAR);
  CHECK(driver.bar_size(bar) == kSize);
  CHECK(driver.pci_host().memory_at(driver.bar_address(bar)) == f.room.bytes().data());
  driver.move_bar(bar, PciDriver::kWindow + kSize);
  CHECK(driver.pci_host().memory_at(PciDriver::kWindow + kSize) == f.room.bytes().data());

  // The window of the configuration space leads to registers only.
  const std::uint64_t window = driver.find_capability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_PCI_CFG);
  driver.config_write(window + VIRTIO_PCI_CAP_BAR, static_cast<std::uint8_t>(bar));
  driver.config_write<std::uint32_t>(window + VIRTIO_PCI_CAP_OFFSET, 0);
  driver.config_write<std::uint32_t>(window + VIRTIO_PCI_CAP_LENGTH, 4);
  const std::uint64_t data = window + offsetof(virtio_pci_cfg_cap, pci_cfg_data);
  driver.config_write<std::uint32_t>(data, 0x55555555);
  CHECK(driver.config_read<std::uint32_t>(data) == 0);
  CHECK(f.room.bytes()[0] == std::byte{0});

  // The queues and interrupts are where they were.
  driver.begin(kEventIdx);
  CHECK((driver.status() & VIRTIO_CONFIG_S_DRIVER_OK) != 0);
}

TEST_CASE("virtio-pci: a device without shared memory has no capability for it") {
  FakeGuest guest(1);
  IdleDevice device;
  PciDriver driver(guest, device);
  CHECK(driver.find_capability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_SHARED_MEMORY_CFG) == 0);
}

}  // namespace
}  // namespace vireo
