// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/msix.h"

#include <atomic>
#include <chrono>
#include <thread>

#include <linux/pci_regs.h>

#include "tests/support/catch.h"
#include "tests/support/fake_pci.h"

namespace vireo {
namespace {

struct Fixture {
  explicit Fixture(unsigned vectors = 3) : msix(std::move(*Msix::create(vectors, router))) {}

  /// Vector `index` sends 0x40 + index to 0xfee00000.
  void program(unsigned index, bool masked = false) {
    const std::uint64_t entry = std::uint64_t{index} * PCI_MSIX_ENTRY_SIZE;
    store<std::uint32_t>(*msix, entry + PCI_MSIX_ENTRY_LOWER_ADDR, 0xfee00000);
    store<std::uint32_t>(*msix, entry + PCI_MSIX_ENTRY_UPPER_ADDR, 1);
    store<std::uint32_t>(*msix, entry + PCI_MSIX_ENTRY_DATA, 0x40 + index);
    mask(index, masked);
  }
  void mask(unsigned index, bool masked) {
    store<std::uint32_t>(*msix,
                         std::uint64_t{index} * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL,
                         masked ? PCI_MSIX_ENTRY_CTRL_MASKBIT : 0);
  }
  std::uint64_t pending() { return load<std::uint64_t>(*msix, msix->pba_offset()); }

  FakeMsiRouter router;
  std::unique_ptr<Msix> msix;
};

TEST_CASE("msix: a vector that is open sends what the table says") {
  Fixture f;
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  f.program(1);
  CHECK(f.router.route_of(1).address == 0x1'fee0'0000);
  CHECK_FALSE(f.router.route_of(1).masked);
  CHECK(f.router.told() == 1);  // not of each word behind the mask
  f.program(1);
  CHECK(f.router.told() == 1);  // nor of what is the same
  f.msix->raise(1);
  f.msix->raise(1);
  CHECK(f.router.messages(0x41) == 2);
  CHECK(f.pending() == 0);
  // §6.8.2.9 leaves it undefined; here it takes effect.
  store<std::uint32_t>(*f.msix, PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_DATA, 0x77);
  f.msix->raise(1);
  CHECK(f.router.messages(0x77) == 1);
}

TEST_CASE("msix: what is raised behind a mask is sent once, when it is lifted") {
  Fixture f;
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  f.program(2, true);
  f.msix->raise(2);
  f.msix->raise(2);
  CHECK(f.pending() == 1U << 2);
  CHECK(load<std::uint8_t>(*f.msix, f.msix->pba_offset()) == 1U << 2);
  CHECK(f.router.messages(0x42) == 0);
  f.mask(2, false);
  CHECK(f.router.messages(0x42) == 1);
  CHECK(f.pending() == 0);
  f.mask(2, true);
  CHECK(f.router.route_of(2).masked);
  f.mask(2, false);
  CHECK(f.router.messages(0x42) == 1);
}

TEST_CASE("msix: the function's mask is over all vectors") {
  Fixture f;
  f.program(0);
  f.program(1);
  f.program(2, true);
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
  for (unsigned index = 0; index < 3; ++index) {
    f.msix->raise(index);
  }
  CHECK(f.pending() == 7);
  CHECK(f.router.told() == 0);
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  CHECK(f.router.messages(0x40) == 1);
  CHECK(f.router.messages(0x41) == 1);
  CHECK(f.router.messages(0x42) == 0);
  CHECK(f.pending() == 4);
}

TEST_CASE("msix: disabled it sends nothing and keeps nothing") {
  Fixture f;
  f.program(0);
  f.msix->raise(0);
  CHECK(f.pending() == 0);
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
  f.msix->raise(0);
  f.msix->set_control(0);
  CHECK(f.pending() == 0);
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  CHECK(f.router.messages(0x40) == 0);
}

TEST_CASE("msix: bits that are reserved or pending cannot be written, in any width") {
  Fixture f(65);
  CHECK(load<std::uint32_t>(*f.msix, PCI_MSIX_ENTRY_VECTOR_CTRL) == PCI_MSIX_ENTRY_CTRL_MASKBIT);
  for (std::uint64_t at = 0; at < f.msix->bar_size(); at += 8) {
    store<std::uint64_t>(*f.msix, at, 0xffffffffffffffff);
  }
  CHECK(load<std::uint64_t>(*f.msix, 0) == 0xfffffffffffffffc);
  CHECK(load<std::uint64_t>(*f.msix, 8) == 0x1ffffffff);
  CHECK(load<std::uint64_t>(*f.msix, 65 * PCI_MSIX_ENTRY_SIZE) == 0);
  CHECK(f.pending() == 0);
  // Across two entries, both of which take effect.
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  f.mask(0, false);
  store<std::uint64_t>(*f.msix, PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
  CHECK(load<std::uint32_t>(*f.msix, PCI_MSIX_ENTRY_SIZE) == 0);
  f.mask(1, false);
  store<std::uint64_t>(*f.msix, PCI_MSIX_ENTRY_SIZE - 3, 0x1122334455667788);
  CHECK(f.router.route_of(1).address == 0xffffff1122334454);
  f.msix->raise(64);
  CHECK(load<std::uint64_t>(*f.msix, f.msix->pba_offset() + 8) == 1);
  CHECK(load<std::uint8_t>(*f.msix, f.msix->bar_size() - 1) == 0);
}

TEST_CASE("msix: the table and the pending bits of 2048 vectors fit their BAR") {
  Fixture f(2048);
  CHECK(f.msix->bar_size() == 0x10000);
  CHECK(f.msix->pba_offset() == 0x8000);
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  f.msix->raise(2047);
  CHECK(load<std::uint8_t>(*f.msix, f.msix->pba_offset() + 255) == 0x80);
}

TEST_CASE("msix: nothing is lost between a raise and a mask that is lifted meanwhile") {
  Fixture f;
  f.msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  f.program(0);
  std::atomic<int> asked = 0;
  std::atomic<bool> stop = false;
  std::thread device([&] {
    for (int raised = 0; !stop;) {
      if (asked.load() > raised) {
        // So that the mask ends at ever other moments of it.
        for (std::atomic<int> spin = 0; spin < raised % 256; ++spin) {
        }
        f.msix->raise(0);
        ++raised;
      }
    }
  });
  // For a few seconds at most, where threads share one CPU.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  const auto in_time = [end] { return std::chrono::steady_clock::now() < end; };
  int lost = 0;
  for (int round = 1; round <= 100'000 && lost == 0 && in_time(); ++round) {
    f.mask(0, true);
    asked = round;
    f.mask(0, false);
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (f.router.messages(0x40) < round && lost == 0) {
      lost = std::chrono::steady_clock::now() < limit ? 0 : round;
    }
  }
  stop = true;
  device.join();
  CHECK(lost == 0);
}

}  // namespace
}  // namespace vireo
