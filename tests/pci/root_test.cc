// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/root.h"

#include <thread>

#include "tests/support/catch.h"
#include "tests/support/fake_pci.h"

namespace vireo {
namespace {

constexpr std::uint64_t kWindow = 0xd0000000;
constexpr std::uint64_t kWindowSize = 0x10000;
constexpr std::uint64_t kBell = 0x800;

/// A function with one BAR that reads as its slot's number, and a doorbell.
struct Device {
  explicit Device(std::uint8_t slot)
      : number(slot),
        registers(std::byte{slot}),
        function({.vendor = 0x1af4, .device = static_cast<std::uint16_t>(0x1040 + slot)}) {
    function.add_bar(0, registers.bytes.size(), registers);
    function.add_doorbell({.bar = 0, .offset = kBell, .width = 2, .fd = slot});
  }
  std::uint8_t number;
  FakeRegisters registers;
  PciFunction function;
};

struct Fixture {
  Fixture() {
    for (Device* const device : {&first, &second}) {
      REQUIRE(root.add(device->number, device->function));
      store<std::uint16_t>(root.ecam(), at(*device, PCI_COMMAND), PCI_COMMAND_MEMORY);
    }
  }
  static std::uint64_t at(const Device& device, std::uint64_t offset) {
    return (std::uint64_t{device.number} << 15) + offset;
  }
  void move(const Device& device, std::uint64_t address) {
    store<std::uint32_t>(root.ecam(), at(device, PCI_BASE_ADDRESS_0),
                         static_cast<std::uint32_t>(address));
    store<std::uint32_t>(root.ecam(), at(device, PCI_BASE_ADDRESS_1),
                         static_cast<std::uint32_t>(address >> 32));
  }
  std::uint64_t address_of(const Device& device) {
    return load<std::uint32_t>(root.ecam(), at(device, PCI_BASE_ADDRESS_0)) & ~0xfU;
  }
  /// What answers at an address of the window.
  unsigned who(std::uint64_t address) { return load<std::uint8_t>(root.mmio(), address - kWindow); }

  FakeDoorbells doorbells;
  PciRoot root{*GuestRange::create(GuestAddress(kWindow), kWindowSize), doorbells};
  Device first{3};
  Device second{7};
};

TEST_CASE("pci root: a host bridge, the functions, and all ones in their midst") {
  Fixture f;
  BusDevice& ecam = f.root.ecam();
  CHECK(load<std::uint16_t>(ecam, PCI_CLASS_DEVICE) == 0x0600);
  CHECK(load<std::uint16_t>(ecam, f.at(f.first, PCI_DEVICE_ID)) == 0x1043);
  CHECK(load<std::uint16_t>(ecam, f.at(f.second, PCI_DEVICE_ID)) == 0x1047);
  for (unsigned slot = 0; slot < PciRoot::kSlots; ++slot) {
    for (unsigned function = 0; function < 8; ++function) {
      const std::uint64_t at = slot << 15 | function << 12;
      const bool present = function == 0 && (slot == 0 || slot == 3 || slot == 7);
      CHECK((load<std::uint32_t>(ecam, at) != 0xffffffff) == present);
      if (!present) {
        store<std::uint64_t>(ecam, at + PCI_BASE_ADDRESS_0, 0);
        CHECK(load<std::uint8_t>(ecam, at + 0xfff) == 0xff);
        CHECK(load<std::uint64_t>(ecam, at + 0xff8) == 0xffffffffffffffff);
      }
    }
  }
}

TEST_CASE("pci root: BARs lie apart from the start, and are found") {
  Fixture f;
  CHECK(f.address_of(f.first) == kWindow);
  CHECK(f.address_of(f.second) == kWindow + 0x1000);
  CHECK(f.who(kWindow) == 3);
  CHECK(f.who(kWindow + 0xfff) == 3);
  CHECK(f.who(kWindow + 0x1000) == 7);
  CHECK(f.who(kWindow + 0x2000) == 0xff);
  store<std::uint16_t>(f.root.mmio(), 0x1010, 0xabcd);
  CHECK(f.second.registers.bytes[0x11] == std::byte{0xab});
  // Nobody has all of it.
  CHECK(load<std::uint32_t>(f.root.mmio(), 0xffe) == 0xffffffff);
  store<std::uint32_t>(f.root.mmio(), 0xffe, 0);
  CHECK(f.who(kWindow + 0xffe) == 3);
  CHECK(load<std::uint64_t>(f.root.mmio(), kWindowSize - 8) == 0xffffffffffffffff);
}

TEST_CASE("pci root: a BAR that moves takes its doorbell along") {
  Fixture f;
  CHECK(f.doorbells.fd_at(kWindow + kBell, 2) == 3);
  f.move(f.first, kWindow + 0x8000);
  CHECK(f.who(kWindow) == 0xff);
  CHECK(f.who(kWindow + 0x8000) == 3);
  CHECK(f.doorbells.fd_at(kWindow + kBell, 2) == -1);
  CHECK(f.doorbells.fd_at(kWindow + 0x8000 + kBell, 2) == 3);
  store<std::uint16_t>(f.root.ecam(), f.at(f.first, PCI_COMMAND), 0);
  CHECK(f.who(kWindow + 0x8000) == 0xff);
  CHECK(f.doorbells.count() == 1);
  store<std::uint16_t>(f.root.ecam(), f.at(f.first, PCI_COMMAND), PCI_COMMAND_MEMORY);
  CHECK(f.who(kWindow + 0x8000) == 3);
  CHECK(f.doorbells.count() == 2);
}

TEST_CASE("pci root: of BARs at one place the lowest slot's answers, with its doorbell") {
  Fixture f;
  f.move(f.first, kWindow + 0x1000);
  CHECK(f.who(kWindow + 0x1000) == 3);
  CHECK(f.doorbells.fd_at(kWindow + 0x1000 + kBell, 2) == 3);
  CHECK(f.doorbells.count() == 1);
  f.move(f.first, kWindow + 0x2000);
  CHECK(f.who(kWindow + 0x1000) == 7);
  CHECK(f.doorbells.fd_at(kWindow + 0x1000 + kBell, 2) == 7);
  // The other way about, and then in each other's place.
  f.move(f.second, kWindow + 0x2000);
  CHECK(f.who(kWindow + 0x2000) == 3);
  CHECK(f.doorbells.fd_at(kWindow + 0x2000 + kBell, 2) == 3);
  f.move(f.first, kWindow + 0x1000);
  CHECK(f.who(kWindow + 0x2000) == 7);
  CHECK(f.doorbells.fd_at(kWindow + 0x2000 + kBell, 2) == 7);
  CHECK(f.doorbells.count() == 2);
}

TEST_CASE("pci root: outside of the window no BAR answers") {
  Fixture f;
  for (const std::uint64_t address :
       {std::uint64_t{0}, kWindow - 0x1000, kWindow + kWindowSize,
        kWindow + (std::uint64_t{1} << 32), std::uint64_t{0xfffffffffffff000}}) {
    INFO("address " << address);
    f.move(f.first, address);
    for (std::uint64_t at = kWindow; at < kWindow + kWindowSize; at += 0x1000) {
      CHECK(f.who(at) == (at == kWindow + 0x1000 ? 7 : 0xff));
    }
    CHECK(f.doorbells.count() == 1);
  }
  f.move(f.first, kWindow + kWindowSize - 0x1000);
  CHECK(f.who(kWindow + kWindowSize - 1) == 3);
  CHECK(f.doorbells.count() == 2);
}

TEST_CASE("pci root: where no doorbell can be hung the BAR still has the write") {
  Fixture f;
  f.doorbells.full = true;
  f.move(f.first, kWindow + 0x4000);
  CHECK(f.doorbells.count() == 1);
  store<std::uint16_t>(f.root.mmio(), 0x4000 + kBell, 0x4321);
  CHECK(f.first.registers.bytes[kBell] == std::byte{0x21});
  f.move(f.first, kWindow + 0x5000);
  f.doorbells.full = false;
  f.move(f.first, kWindow + 0x6000);
  CHECK(f.doorbells.fd_at(kWindow + 0x6000 + kBell, 2) == 3);
}

TEST_CASE("pci root: vCPUs that move BARs at once leave them where they were put last") {
  Fixture f;
  const auto vcpu = [&f](std::uint64_t seed) {
    for (std::uint64_t round = 0; round < 2'000; ++round) {
      const std::uint64_t number = round * seed;
      f.move(number % 2 == 0 ? f.first : f.second, kWindow + number / 2 % 17 * 0x1000);
      load<std::uint32_t>(f.root.mmio(), number % 16 * 0x1000);
    }
  };
  std::thread other(vcpu, 5);
  vcpu(7);
  other.join();
  for (const Device* const device : {&f.first, &f.second}) {
    const std::uint64_t address = f.address_of(*device);
    const bool answers = address < kWindow + kWindowSize && f.who(address) == device->number;
    CHECK((f.doorbells.fd_at(address + kBell, 2) == device->number) == answers);
  }
  f.move(f.first, kWindow);
  f.move(f.second, kWindow + 0x1000);
  CHECK(f.doorbells.fd_at(kWindow + kBell, 2) == 3);
  CHECK(f.doorbells.fd_at(kWindow + 0x1000 + kBell, 2) == 7);
  CHECK(f.doorbells.count() == 2);
}

TEST_CASE("pci root: a BAR that is not all in the window does not answer") {
  FakeDoorbells doorbells;
  PciRoot root(*GuestRange::create(GuestAddress(kWindow), 0x1800), doorbells);
  Device device(0x1f);
  REQUIRE(root.add(device.number, device.function));
  store<std::uint16_t>(root.ecam(), Fixture::at(device, PCI_COMMAND), PCI_COMMAND_MEMORY);
  CHECK(load<std::uint8_t>(root.mmio(), 0) == 0x1f);
  store<std::uint32_t>(root.ecam(), Fixture::at(device, PCI_BASE_ADDRESS_0), kWindow + 0x1000);
  CHECK(load<std::uint8_t>(root.mmio(), 0x1000) == 0xff);
  CHECK(doorbells.count() == 0);
}

TEST_CASE("pci root: a window that is full takes no function more") {
  FakeDoorbells doorbells;
  PciRoot root(*GuestRange::create(GuestAddress(kWindow), 0x1000), doorbells);
  Device first(1);
  Device second(2);
  CHECK(root.add(1, first.function));
  CHECK_FALSE(root.add(2, second.function));
}

}  // namespace
}  // namespace vireo
