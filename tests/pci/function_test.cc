// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/function.h"

#include <algorithm>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/fake_pci.h"

namespace vireo {
namespace {

constexpr PciFunction::Identity kIdentity = {.vendor = 0x1af4,
                                             .device = 0x1044,
                                             .class_code = 0xff00,
                                             .revision = 1,
                                             .subsystem_vendor = 0x1af4,
                                             .subsystem = 0x1100};

struct Fixture {
  Fixture() { function.add_bar(0, 0x1000, registers); }

  FakeRegisters registers;
  PciFunction function{kIdentity};
  ConfigOf config{function};
};

TEST_CASE("pci function: the header says what it is") {
  Fixture f;
  CHECK(load<std::uint16_t>(f.config, PCI_VENDOR_ID) == 0x1af4);
  CHECK(load<std::uint16_t>(f.config, PCI_DEVICE_ID) == 0x1044);
  CHECK(load<std::uint32_t>(f.config, PCI_CLASS_REVISION) == 0xff000001);
  CHECK(load<std::uint8_t>(f.config, PCI_HEADER_TYPE) == PCI_HEADER_TYPE_NORMAL);
  CHECK(load<std::uint32_t>(f.config, PCI_SUBSYSTEM_VENDOR_ID) == 0x11001af4);
  CHECK(load<std::uint8_t>(f.config, PCI_INTERRUPT_PIN) == 0);
  CHECK(load<std::uint16_t>(f.config, PCI_STATUS) == 0);
  CHECK(load<std::uint8_t>(f.config, PCI_CAPABILITY_LIST) == 0);
}

TEST_CASE("pci function: a guest writes what it may, and nothing else") {
  Fixture f;
  std::vector<std::uint8_t> before;
  for (unsigned at = 0; at < PCI_CFG_SPACE_EXP_SIZE; ++at) {
    before.push_back(load<std::uint8_t>(f.config, at));
    store<std::uint8_t>(f.config, at, 0xff);
  }
  for (unsigned at = 0; at < PCI_CFG_SPACE_EXP_SIZE; ++at) {
    INFO("at " << at);
    const auto now = load<std::uint8_t>(f.config, at);
    if (at == PCI_COMMAND) {
      CHECK(now == (PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER));
    } else if (at == PCI_COMMAND + 1) {
      CHECK(now == PCI_COMMAND_INTX_DISABLE >> 8);
    } else if (at == PCI_CACHE_LINE_SIZE || at == PCI_INTERRUPT_LINE) {
      CHECK(now == 0xff);
    } else if (at < PCI_BASE_ADDRESS_0 || at >= PCI_BASE_ADDRESS_2) {
      CHECK(now == before[at]);
    }
  }
}

TEST_CASE("pci function: a BAR is sized by writing all ones") {
  Fixture f;
  FakeRegisters large;
  f.function.add_bar(2, std::uint64_t{1} << 33, large);
  for (unsigned at = PCI_BASE_ADDRESS_0; at < PCI_BASE_ADDRESS_5 + 4; at += 4) {
    store<std::uint32_t>(f.config, at, 0xffffffff);
  }
  constexpr std::uint32_t kType = PCI_BASE_ADDRESS_MEM_TYPE_64;
  CHECK(load<std::uint32_t>(f.config, PCI_BASE_ADDRESS_0) == (0xfffff000 | kType));
  CHECK(load<std::uint32_t>(f.config, PCI_BASE_ADDRESS_1) == 0xffffffff);
  CHECK(load<std::uint32_t>(f.config, PCI_BASE_ADDRESS_2) == kType);
  CHECK(load<std::uint32_t>(f.config, PCI_BASE_ADDRESS_3) == 0xfffffffe);
  CHECK(load<std::uint32_t>(f.config, PCI_BASE_ADDRESS_4) == 0);
  CHECK(load<std::uint32_t>(f.config, PCI_BASE_ADDRESS_5) == 0);
  CHECK(load<std::uint32_t>(f.config, PCI_ROM_ADDRESS) == 0);
}

TEST_CASE("pci function: a BAR has an address only while memory is decoded") {
  Fixture f;
  store<std::uint64_t>(f.config, PCI_BASE_ADDRESS_0, 0x1'd000'0fffULL);
  CHECK(f.config.moved);
  CHECK_FALSE(f.function.bar_address(0));
  store<std::uint16_t>(f.config, PCI_COMMAND, PCI_COMMAND_MEMORY);
  CHECK(f.config.moved);
  CHECK(f.function.bar_address(0) == 0x1'd000'0000);
  CHECK_FALSE(f.function.bar_address(1));
  store<std::uint8_t>(f.config, PCI_BASE_ADDRESS_0 + 3, 0xd8);
  CHECK(f.config.moved);
  CHECK(f.function.bar_address(0) == 0x1'd800'0000);
  store<std::uint8_t>(f.config, PCI_INTERRUPT_LINE, 7);
  CHECK_FALSE(f.config.moved);
  store<std::uint16_t>(f.config, PCI_COMMAND, PCI_COMMAND_MASTER);
  CHECK(f.config.moved);
  CHECK_FALSE(f.function.bar_address(0));
}

TEST_CASE("pci function: the capability list leads through all of them") {
  Fixture f;
  FakeMsiRouter router;
  const auto msix = std::move(*Msix::create(3, router));
  const std::array body = {std::byte{5}, std::byte{0xaa}, std::byte{0xbb}};
  const std::array writable = {std::byte{0}, std::byte{0x0f}};
  const unsigned vendor = f.function.add_capability(PCI_CAP_ID_VNDR, body, writable);
  f.function.add_msix(2, *msix);
  CHECK((load<std::uint16_t>(f.config, PCI_STATUS) & PCI_STATUS_CAP_LIST) != 0);
  CHECK(load<std::uint8_t>(f.config, PCI_CAPABILITY_LIST) == vendor);
  CHECK(load<std::uint8_t>(f.config, vendor) == PCI_CAP_ID_VNDR);
  CHECK(load<std::uint8_t>(f.config, vendor + 3) == 0xaa);
  store<std::uint8_t>(f.config, vendor + 3, 0);
  CHECK(load<std::uint8_t>(f.config, vendor + 3) == 0xa0);
  store<std::uint8_t>(f.config, vendor + 4, 0);
  CHECK(load<std::uint8_t>(f.config, vendor + 4) == 0xbb);

  const unsigned at = load<std::uint8_t>(f.config, vendor + PCI_CAP_LIST_NEXT);
  CHECK(at % 4 == 0);
  CHECK(load<std::uint8_t>(f.config, at) == PCI_CAP_ID_MSIX);
  CHECK(load<std::uint8_t>(f.config, at + PCI_CAP_LIST_NEXT) == 0);
  CHECK(load<std::uint16_t>(f.config, at + PCI_MSIX_FLAGS) == 2);
  CHECK(load<std::uint32_t>(f.config, at + PCI_MSIX_TABLE) == 2);
  CHECK(load<std::uint32_t>(f.config, at + PCI_MSIX_PBA) == (msix->pba_offset() | 2));
  store<std::uint16_t>(f.config, at + PCI_MSIX_FLAGS, 0xffff);
  CHECK(load<std::uint16_t>(f.config, at + PCI_MSIX_FLAGS) ==
        (PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL | 2));
}

TEST_CASE("pci function: the message control word reaches the vectors") {
  Fixture f;
  FakeMsiRouter router;
  const auto msix = std::move(*Msix::create(1, router));
  f.function.add_msix(2, *msix);
  const unsigned at = load<std::uint8_t>(f.config, PCI_CAPABILITY_LIST);
  store<std::uint32_t>(*msix, PCI_MSIX_ENTRY_DATA, 9);
  store<std::uint32_t>(*msix, PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
  msix->raise(0);
  CHECK(router.messages(9) == 0);
  // By one byte, by two, and by the word of four with the header in front.
  store<std::uint8_t>(f.config, at + PCI_MSIX_FLAGS + 1, PCI_MSIX_FLAGS_ENABLE >> 8);
  msix->raise(0);
  CHECK(router.messages(9) == 1);
  store<std::uint16_t>(f.config, at + PCI_MSIX_FLAGS, 0);
  msix->raise(0);
  CHECK(router.messages(9) == 1);
  store<std::uint32_t>(f.config, at, std::uint32_t{PCI_MSIX_FLAGS_ENABLE} << 16);
  msix->raise(0);
  CHECK(router.messages(9) == 2);
}

TEST_CASE("pci function: accesses of any width stay within a word") {
  Fixture f;
  CHECK(load<std::uint64_t>(f.config, PCI_VENDOR_ID) == 0x10441af4);
  CHECK(load<std::uint16_t>(f.config, 1) == 0x441a);
  CHECK(load<std::uint32_t>(f.config, 1) == 0xffffffff);
  CHECK(load<std::uint16_t>(f.config, 3) == 0xffff);
  CHECK(load<std::uint64_t>(f.config, 2) == 0xffffffffffffffff);
  CHECK(load<std::uint64_t>(f.config, PCI_CFG_SPACE_EXP_SIZE - 4) == 0xffffffff00000000);
  CHECK(load<std::uint8_t>(f.config, PCI_CFG_SPACE_EXP_SIZE) == 0xff);
  store<std::uint32_t>(f.config, PCI_COMMAND - 2, 0xffffffff);
  store<std::uint32_t>(f.config, PCI_COMMAND + 1, 0xffffffff);
  store<std::uint64_t>(f.config, PCI_CFG_SPACE_EXP_SIZE - 4, 0xffffffffffffffff);
  CHECK(load<std::uint16_t>(f.config, PCI_COMMAND) == 0);
}

TEST_CASE("pci function: the bytes of a window are somebody else's") {
  Fixture f;
  FakeRegisters window(std::byte{0x5a});
  const unsigned at = f.function.add_capability(PCI_CAP_ID_VNDR, std::array<std::byte, 6>{});
  f.function.set_window(at + 4, window);
  CHECK(load<std::uint32_t>(f.config, at + 4) == 0x5a5a5a5a);
  store<std::uint16_t>(f.config, at + 6, 0x1234);
  CHECK(window.bytes[2] == std::byte{0x34});
  CHECK(window.bytes[0] == std::byte{0x5a});
  CHECK(load<std::uint32_t>(f.config, at) == PCI_CAP_ID_VNDR);
}

}  // namespace
}  // namespace vireo
