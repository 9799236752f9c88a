// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/root.h"

#include <thread>

#include <sys/mman.h>

#include "src/base/fd.h"
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

  FakePciHost host;
  PciRoot root{*GuestRange::create(GuestAddress(kWindow), kWindowSize), host};
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
  CHECK(f.host.fd_at(kWindow + kBell, 2) == 3);
  f.move(f.first, kWindow + 0x8000);
  CHECK(f.who(kWindow) == 0xff);
  CHECK(f.who(kWindow + 0x8000) == 3);
  CHECK(f.host.fd_at(kWindow + kBell, 2) == -1);
  CHECK(f.host.fd_at(kWindow + 0x8000 + kBell, 2) == 3);
  store<std::uint16_t>(f.root.ecam(), f.at(f.first, PCI_COMMAND), 0);
  CHECK(f.who(kWindow + 0x8000) == 0xff);
  CHECK(f.host.count() == 1);
  store<std::uint16_t>(f.root.ecam(), f.at(f.first, PCI_COMMAND), PCI_COMMAND_MEMORY);
  CHECK(f.who(kWindow + 0x8000) == 3);
  CHECK(f.host.count() == 2);
}

TEST_CASE("pci root: of BARs at one place the lowest slot's answers, with its doorbell") {
  Fixture f;
  f.move(f.first, kWindow + 0x1000);
  CHECK(f.who(kWindow + 0x1000) == 3);
  CHECK(f.host.fd_at(kWindow + 0x1000 + kBell, 2) == 3);
  CHECK(f.host.count() == 1);
  f.move(f.first, kWindow + 0x2000);
  CHECK(f.who(kWindow + 0x1000) == 7);
  CHECK(f.host.fd_at(kWindow + 0x1000 + kBell, 2) == 7);
  // The other way about, and then in each other's place.
  f.move(f.second, kWindow + 0x2000);
  CHECK(f.who(kWindow + 0x2000) == 3);
  CHECK(f.host.fd_at(kWindow + 0x2000 + kBell, 2) == 3);
  f.move(f.first, kWindow + 0x1000);
  CHECK(f.who(kWindow + 0x2000) == 7);
  CHECK(f.host.fd_at(kWindow + 0x2000 + kBell, 2) == 7);
  CHECK(f.host.count() == 2);
}

/// Memory that a BAR can be.
struct Pages {
  explicit Pages(std::uint64_t size)
      : room(std::move(*Mapping::create(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                        -1, 0, "pages"))) {}
  Mapping room;
};

TEST_CASE("pci root: a BAR that is memory is the guest's wherever it is put") {
  Fixture f;
  Pages pages(0x4000);
  Device third(9);
  third.function.add_memory_bar(2, pages.room.bytes());
  REQUIRE(f.root.add(9, third.function));
  std::byte* const first_byte = pages.room.bytes().data();
  const std::uint64_t bar = Fixture::at(third, PCI_BASE_ADDRESS_2);
  const std::uint64_t start = load<std::uint32_t>(f.root.ecam(), bar) & ~0xfU;
  CHECK((load<std::uint32_t>(f.root.ecam(), bar) & 0xf) ==
        (PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH));
  CHECK(start % 0x4000 == 0);
  CHECK(f.host.memory_at(start) == nullptr);
  store<std::uint16_t>(f.root.ecam(), Fixture::at(third, PCI_COMMAND), PCI_COMMAND_MEMORY);
  CHECK(f.host.memory_at(start) == first_byte);
  CHECK(f.host.memory_at(start + 0x3fff) == first_byte + 0x3fff);

  const auto move_it = [&](std::uint64_t address) {
    store<std::uint32_t>(f.root.ecam(), bar, static_cast<std::uint32_t>(address));
  };
  move_it(kWindow + 0xc000);
  CHECK(f.host.memory_at(start) == nullptr);
  CHECK(f.host.memory_at(kWindow + 0xc000) == first_byte);
  // Onto a BAR of a lower slot, which answers alone, even where that leaves room.
  f.move(f.first, kWindow + 0x9000);
  move_it(kWindow + 0x8000);
  CHECK(f.host.memory_at(kWindow + 0x8000) == nullptr);
  CHECK(f.who(kWindow + 0x9000) == 3);
  CHECK(f.who(kWindow + 0x8000) == 0xff);
  store<std::uint32_t>(f.root.mmio(), 0x8000, 0);
  f.move(f.first, kWindow + 0x1000);
  CHECK(f.host.memory_at(kWindow + 0x8000) == first_byte);
  // Out of the window.
  move_it(0);
  CHECK(f.host.memory_at(0) == nullptr);
  CHECK(f.host.memory_at(kWindow + 0x8000) == nullptr);
  move_it(kWindow + 0x4000);
  f.root.power_cycle();
  CHECK(f.host.memory_at(kWindow + 0x4000) == nullptr);
}

TEST_CASE("pci root: memory of a BAR that the host refuses is not there, and comes with a move") {
  Fixture f;
  Pages pages(0x1000);
  Device third(9);
  third.function.add_memory_bar(2, pages.room.bytes());
  REQUIRE(f.root.add(9, third.function));
  const std::uint64_t bar = Fixture::at(third, PCI_BASE_ADDRESS_2);
  f.host.full = true;
  store<std::uint16_t>(f.root.ecam(), Fixture::at(third, PCI_COMMAND), PCI_COMMAND_MEMORY);
  const std::uint64_t start = load<std::uint32_t>(f.root.ecam(), bar) & ~0xfU;
  CHECK(f.host.memory_at(start) == nullptr);
  CHECK(f.who(start) == 0xff);
  f.host.full = false;
  store<std::uint32_t>(f.root.ecam(), bar, static_cast<std::uint32_t>(kWindow + 0x8000));
  CHECK(f.host.memory_at(kWindow + 0x8000) == pages.room.bytes().data());
}

TEST_CASE("pci root: two BARs of memory that change places") {
  Fixture f;
  Pages one(0x1000);
  Pages other(0x1000);
  f.first.function.add_memory_bar(2, one.room.bytes());
  PciFunction more({.vendor = 0x1af4, .device = 0x1041});
  more.add_memory_bar(2, other.room.bytes());
  PciRoot root(*GuestRange::create(GuestAddress(kWindow), kWindowSize), f.host);
  REQUIRE(root.add(3, f.first.function));
  REQUIRE(root.add(9, more));
  const auto put = [&root](unsigned slot, std::uint64_t address) {
    const std::uint64_t config = std::uint64_t{slot} << 15;
    store<std::uint16_t>(root.ecam(), config + PCI_COMMAND, PCI_COMMAND_MEMORY);
    store<std::uint32_t>(root.ecam(), config + PCI_BASE_ADDRESS_2,
                         static_cast<std::uint32_t>(address));
  };
  put(9, kWindow + 0x8000);
  put(3, kWindow + 0x8000);
  CHECK(f.host.memory_at(kWindow + 0x8000) == one.room.bytes().data());
  put(9, kWindow + 0x9000);
  CHECK(f.host.memory_at(kWindow + 0x9000) == other.room.bytes().data());
  put(3, kWindow + 0x9000);
  CHECK(f.host.memory_at(kWindow + 0x9000) == one.room.bytes().data());
  CHECK(f.host.memory_at(kWindow + 0x8000) == nullptr);
  root.power_cycle();
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
    CHECK(f.host.count() == 1);
  }
  f.move(f.first, kWindow + kWindowSize - 0x1000);
  CHECK(f.who(kWindow + kWindowSize - 1) == 3);
  CHECK(f.host.count() == 2);
}

TEST_CASE("pci root: where no doorbell can be hung the BAR still has the write") {
  Fixture f;
  f.host.full = true;
  f.move(f.first, kWindow + 0x4000);
  CHECK(f.host.count() == 1);
  store<std::uint16_t>(f.root.mmio(), 0x4000 + kBell, 0x4321);
  CHECK(f.first.registers.bytes[kBell] == std::byte{0x21});
  f.move(f.first, kWindow + 0x5000);
  f.host.full = false;
  f.move(f.first, kWindow + 0x6000);
  CHECK(f.host.fd_at(kWindow + 0x6000 + kBell, 2) == 3);
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
    CHECK((f.host.fd_at(address + kBell, 2) == device->number) == answers);
  }
  f.move(f.first, kWindow);
  f.move(f.second, kWindow + 0x1000);
  CHECK(f.host.fd_at(kWindow + kBell, 2) == 3);
  CHECK(f.host.fd_at(kWindow + 0x1000 + kBell, 2) == 7);
  CHECK(f.host.count() == 2);
}

TEST_CASE("pci root: a BAR that is not all in the window does not answer") {
  FakePciHost host;
  PciRoot root(*GuestRange::create(GuestAddress(kWindow), 0x1800), host);
  Device device(0x1f);
  REQUIRE(root.add(device.number, device.function));
  store<std::uint16_t>(root.ecam(), Fixture::at(device, PCI_COMMAND), PCI_COMMAND_MEMORY);
  CHECK(load<std::uint8_t>(root.mmio(), 0) == 0x1f);
  store<std::uint32_t>(root.ecam(), Fixture::at(device, PCI_BASE_ADDRESS_0), kWindow + 0x1000);
  CHECK(load<std::uint8_t>(root.mmio(), 0x1000) == 0xff);
  CHECK(host.count() == 0);
}

TEST_CASE("pci root: a window that is full takes no function more") {
  FakePciHost host;
  PciRoot root(*GuestRange::create(GuestAddress(kWindow), 0x1000), host);
  Device first(1);
  Device second(2);
  CHECK(root.add(1, first.function));
  CHECK_FALSE(root.add(2, second.function));
}

}  // namespace
}  // namespace vireo
