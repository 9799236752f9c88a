// SPDX-License-Identifier: Apache-2.0
// Devices on both transports, saved and restored, also from bytes that nobody saved. That they go
// on as they were is the device suite's.
#include "src/snapshot/snapshot.h"

#include <algorithm>
#include <array>
#include <memory>
#include <ranges>
#include <string>
#include <thread>
#include <vector>

#include "devices/rng/rng_device.h"
#include "tests/support/catch.h"
#include "tests/support/fake_guest.h"
#include "tests/support/hostile_sections.h"
#include "tests/support/pci_driver.h"
#include "tests/virtio/idle_device.h"

namespace vireo {
namespace {

constexpr std::uint32_t kRunning = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                                   VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

std::vector<std::vector<std::byte>> bytes_of(const SnapshotWriter& writer) {
  std::vector<std::vector<std::byte>> all;
  for (const SnapshotSection& section : writer.sections()) {
    all.emplace_back(section.bytes.begin(), section.bytes.end());
  }
  return all;
}

std::vector<std::vector<std::byte>> save(VirtioDriver& driver) {
  SnapshotWriter writer;
  driver.save(writer);
  return bytes_of(writer);
}

std::string problem_of(const Result<>& result) {
  return result ? "none" : result.error().message();
}

TEST_CASE("virtio snapshot: registers that only the transport knows") {
  FakeGuest guest(1);
  IdleDevice device;
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx);
  driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
  driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
  driver.core().publish_config(device.config());
  driver.quiesce();
  SnapshotWriter saved;
  driver.save(saved);

  IdleDevice other;
  MmioDriver next(guest, other);
  REQUIRE(next.go_on(driver.take_rings(), saved.sections()));
  CHECK(next.read(VIRTIO_MMIO_STATUS) == kRunning);
  CHECK(next.read(VIRTIO_MMIO_DEVICE_FEATURES) == 1);  // VIRTIO_F_VERSION_1, of the second page
  CHECK(next.read(VIRTIO_MMIO_QUEUE_NUM_MAX) == 256);
  CHECK(next.read(VIRTIO_MMIO_QUEUE_READY) == 1);
  CHECK(next.read(VIRTIO_MMIO_CONFIG_GENERATION) == 1);
  CHECK(other.active_features == (kEventIdx | feature_bit(VIRTIO_F_VERSION_1)));
  // What the driver has not acknowledged may have been on its way.
  CHECK(next.read(VIRTIO_MMIO_INTERRUPT_STATUS) == VIRTIO_MMIO_INT_CONFIG);
  CHECK(next.line().edges() == 1);
  next.resume();
}

TEST_CASE("virtio snapshot: vectors and the ISR status over PCI") {
  FakeGuest guest(1);
  IdleDevice device;
  PciDriver driver(guest, device);
  driver.begin(kEventIdx);
  driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SELECT, 1);
  driver.set_common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_MSIX, 0);
  driver.core().publish_config(device.config());
  driver.quiesce();
  SnapshotWriter saved;
  driver.save(saved);

  IdleDevice other;
  PciDriver next(guest, other);
  REQUIRE(next.go_on(driver.take_rings(), saved.sections()));
  CHECK(next.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_SELECT) == 1);
  CHECK(next.common<std::uint16_t>(VIRTIO_PCI_COMMON_Q_MSIX) == 0);
  CHECK(next.common<std::uint16_t>(VIRTIO_PCI_COMMON_MSIX) == PciDriver::kConfigVector);
  CHECK(next.common<std::uint8_t>(VIRTIO_PCI_COMMON_STATUS) == kRunning);
  CHECK(next.read<std::uint8_t>(next.structure(VIRTIO_PCI_CAP_ISR_CFG)) == VIRTIO_PCI_ISR_CONFIG);
  next.resume();
}

template <typename Driver>
void tells_of_another_config() {
  FakeGuest guest(1);
  IdleDevice device;
  Driver driver(guest, device);
  driver.begin(kEventIdx);
  driver.quiesce();
  SnapshotWriter saved;
  driver.save(saved);

  IdleDevice other;
  other.config_bytes[3] = std::byte{99};
  Driver next(guest, other);
  REQUIRE(next.go_on(driver.take_rings(), saved.sections()));
  CHECK((next.acknowledge() & VIRTIO_MMIO_INT_CONFIG) != 0);
  CHECK(next.core().config_generation() == 1);
  std::array<std::byte, 6> config = {};
  next.core().read_config(0, config);
  CHECK(config == other.config_bytes);
  next.resume();
}

TEST_CASE("virtio snapshot: a driver is told where the device has changed meanwhile") {
  tells_of_another_config<MmioDriver>();
  tells_of_another_config<PciDriver>();
}

TEST_CASE("virtio snapshot: a ring that its driver broke stays broken, until a reset") {
  FakeGuest guest(1);
  RngDevice device;
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx);
  // An entry that is no head.
  const std::uint16_t head = driver.queue(0).add({{guest.allocate(64), 64, true}});
  driver.queue(0).make_available(driver.queue(0).size());
  driver.kick(0);
  while ((driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET) == 0) {
    std::this_thread::yield();
  }
  driver.quiesce();
  CHECK(driver.queue(0).take_used() == FakeRing::Used{head, 64});
  SnapshotWriter saved;
  driver.save(saved);

  RngDevice other;
  MmioDriver next(guest, other);
  REQUIRE(next.go_on(driver.take_rings(), saved.sections()));
  // In memory it is mended.
  next.queue(0).set_avail_index(1);
  next.queue(0).add({{guest.allocate(64), 64, true}});
  next.queue(0).publish();
  next.resume();
  next.quiesce();
  CHECK(next.status() == (kRunning | VIRTIO_CONFIG_S_NEEDS_RESET));
  CHECK_FALSE(next.queue(0).take_used());
  next.reset();
  next.begin(kEventIdx);
  next.queue(0).add({{guest.allocate(64), 64, true}});
  next.kick(0);
  CHECK(next.wait_used(0).length == 64);
}

TEST_CASE(
    "virtio snapshot: a device that its driver does not use, and one that was set up in vain") {
  FakeGuest guest(1);
  for (const bool in_vain : {false, true}) {
    IdleDevice device;
    MmioDriver driver(guest, device);
    driver.negotiate(kEventIdx);
    if (in_vain) {
      driver.write(VIRTIO_MMIO_QUEUE_READY, 1);  // of no size
      driver.set_status(kRunning);
    }
    const std::uint32_t status = driver.status();
    CHECK(((status & VIRTIO_CONFIG_S_NEEDS_RESET) != 0) == in_vain);
    SnapshotWriter saved;
    driver.save(saved);
    IdleDevice other;
    MmioDriver next(guest, other);
    REQUIRE(next.go_on({}, saved.sections()));
    next.resume();
    CHECK(next.status() == status);
    CHECK(other.active_features == 0);
    next.reset();
    next.begin(kEventIdx);
    CHECK(next.status() == kRunning);
  }
}

TEST_CASE("virtio snapshot: features and sizes are what the driver was offered then") {
  FakeGuest guest(1);
  IdleDevice device;
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx);
  driver.quiesce();
  SnapshotWriter saved;
  driver.save(saved);

  IdleDevice newer;
  newer.offered = 1U << 5;
  MmioDriver next(guest, newer);
  REQUIRE(next.go_on({}, saved.sections()));
  next.resume();
  CHECK((next.offered() & 1U << 5) == 0);
  next.reset();
  CHECK((next.offered() & 1U << 5) == 0);

  // And what is here no more cannot be taken back from it.
  next.negotiate(0);
  IdleDevice offers;
  offers.offered = 1U << 5;
  MmioDriver old(guest, offers);
  SnapshotWriter more;
  old.save(more);
  IdleDevice lacks;
  MmioDriver last(guest, lacks);
  CHECK(problem_of(last.go_on({}, more.sections())) ==
        "section virtio 3: offers features 0x20, which the device here has not");
}

TEST_CASE("virtio snapshot: of another device, or of none that can be") {
  FakeGuest guest(1);
  IdleDevice device;
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx);
  driver.quiesce();
  SnapshotWriter saved;
  driver.save(saved);
  REQUIRE(saved.sections()[0].tag == "virtio-mmio");
  REQUIRE(saved.sections()[1].tag == "virtio");
  const auto fresh = [&guest] {
    IdleDevice none;
    MmioDriver unused(guest, none);
    return save(unused);
  }();

  const auto problem = [&](unsigned section, std::size_t at, unsigned flip) {
    HostileSections hostile(saved.sections());
    hostile.bytes(section).at(at) ^= static_cast<std::byte>(flip);
    IdleDevice other;
    MmioDriver next(guest, other);
    const std::string what = problem_of(next.go_on({}, hostile.sections()));
    // All that was refused has left nothing behind.
    CHECK(save(next) == fresh);
    CHECK(other.active_features == 0);
    return what;
  };
  CHECK(problem(0, 16, 4) == "section virtio-mmio 3: has an interrupt status of 0x4");
  // type 4, offered 8, accepted 8, status 1, active 1, generation 4, config 4 + 6, queues 4, and
  // for each: max 2, size 2, ready 1, desc 8, avail 8, used 8, indices 4, broken 1.
  constexpr std::size_t kQueues = 40;
  CHECK(problem(1, 0, 5) ==
        "section virtio 3: is of a device of type 4 with 2 queues and a configuration space of 6 "
        "bytes, and here is one of type 1 with 2 and 6");
  CHECK(problem(1, 4 + 7, 0x80) ==
        "section virtio 3: offers features 0x8000000000000000, which the device here has not");
  CHECK(problem(1, 12, 1) == "section virtio 3: has a status of 0xf that no driver comes to");
  CHECK(problem(1, 20, 8) == "section virtio 3: has a status of 0x7 that no driver comes to");
  CHECK(problem(1, 20, 4) == "section virtio 3: has a status of 0xb that no driver comes to");
  CHECK(problem(1, 20, 0x20) == "section virtio 3: has a status of 0x2f that no driver comes to");
  CHECK(problem(1, 21, 1) == "section virtio 3: has a status of 0xf that no driver comes to");
  CHECK(problem(1, kQueues + 1, 1) ==
        "section virtio 3: has a queue of up to 320 entries, and the device here 64");
  CHECK(problem(1, kQueues, 64) ==
        "section virtio 3: has a queue of up to 0 entries, and the device here 64");
  CHECK(problem(1, kQueues + 2, 1) == "section virtio 3: has queue 0 as no queue can be");
  CHECK(problem(1, kQueues + 5 + 7, 0x40) == "section virtio 3: has queue 0 as no queue can be");
  CHECK(problem(1, kQueues + 5, 1) == "section virtio 3: has queue 0 as no queue can be");

  PciDriver over_pci(guest, device);
  SnapshotWriter pci;
  over_pci.save(pci);
  IdleDevice other;
  PciDriver next(guest, other);
  HostileSections vector(pci.sections());
  const unsigned last = static_cast<unsigned>(pci.sections().size()) - 2;
  REQUIRE(pci.sections()[last].tag == "virtio-pci");
  vector.bytes(last).at(10) = std::byte{3};  // of 0, 1 and 2
  vector.bytes(last).at(11) = std::byte{0};
  CHECK(problem_of(next.go_on({}, vector.sections())) ==
        "section virtio-pci 5: has a vector beyond those of the function");
  HostileSections fewer(pci.sections());
  fewer.bytes(last).at(13) = std::byte{1};
  fewer.bytes(last).resize(fewer.bytes(last).size() - 2);
  CHECK(problem_of(next.go_on({}, fewer.sections())) ==
        "section virtio-pci 5: has vectors for 1 queues, and the device here 2");
  HostileSections isr(pci.sections());
  isr.bytes(last).at(12) = std::byte{4};
  CHECK(problem_of(next.go_on({}, isr.sections())) ==
        "section virtio-pci 5: has an ISR status of 0x4");
}

/// Whatever comes of it can be used, and is what it saves; nothing comes of what was refused.
template <typename Driver>
void take_any_bytes() {
  FakeGuest guest(1);
  RngDevice device;
  Driver driver(guest, device);
  driver.begin(kEventIdx);
  const std::uint64_t data = guest.allocate(64);
  for (int i = 0; i < 3; ++i) {
    driver.queue(0).add({{data, 64, true}});
  }
  driver.kick(0);
  driver.wait_used(0);
  driver.quiesce();
  SnapshotWriter saved;
  driver.save(saved);
  const auto fresh = [&guest] {
    RngDevice none;
    Driver unused(guest, none);
    return save(unused);
  }();
  unsigned accepted = 0;
  const auto try_it = [&](std::span<const SnapshotSection> sections) {
    RngDevice other;
    Driver next(guest, other);
    if (!next.go_on({}, sections)) {
      REQUIRE(std::ranges::equal(save(next) | std::views::reverse | std::views::take(2),
                                 fresh | std::views::reverse | std::views::take(2)));
      return;
    }
    ++accepted;
    const auto once = save(next);
    RngDevice third;
    Driver again(guest, third);
    SnapshotWriter twice;
    next.save(twice);
    REQUIRE(again.go_on({}, twice.sections()));
    REQUIRE(save(again) == once);
    next.resume();
    next.core().notify(0);
    next.quiesce();
  };
  for_each_flip(saved.sections(), try_it);
  CHECK(accepted > 100);  // addresses of rings, indices, pages
  accepted = 0;
  for_each_length(saved.sections(), try_it);
  CHECK(accepted == 0);
}

TEST_CASE("virtio snapshot: every bit of it flipped, every length of it, over MMIO") {
  take_any_bytes<MmioDriver>();
}

TEST_CASE("virtio snapshot: every bit of it flipped, every length of it, over PCI") {
  take_any_bytes<PciDriver>();
}

TEST_CASE("rng snapshot: a limiter goes on from what it had left") {
  FakeGuest guest(1);
  constexpr std::uint64_t kHour = 3'600'000'000'000;
  const RateLimitConfig limit = {.bandwidth = TokenBucketConfig{.size = 4096, .refill_ns = kHour}};
  RngDevice device(limit);
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx);
  const std::uint64_t data = guest.allocate(4096);
  driver.queue(0).add({{data, 4096, true}});
  driver.kick(0);
  CHECK(driver.wait_used(0).length == 4096);
  driver.queue(0).add({{data, 4096, true}});
  driver.kick(0);
  driver.quiesce();
  SnapshotWriter saved;
  driver.save(saved);

  RngDevice same(limit);
  MmioDriver next(guest, same);
  REQUIRE(next.go_on(driver.take_rings(), saved.sections()));
  next.resume();
  next.quiesce();
  CHECK_FALSE(next.queue(0).take_used());

  RngDevice unlimited;
  MmioDriver last(guest, unlimited);
  REQUIRE(last.go_on(next.take_rings(), saved.sections()));
  last.resume();
  CHECK(last.wait_used(0).length == 4096);

  HostileSections hostile(saved.sections());
  hostile.bytes(2).at(24) ^= std::byte{0xff};  // missing: more than anything takes
  hostile.bytes(2).at(30) ^= std::byte{0xff};
  RngDevice third(limit);
  MmioDriver refused(guest, third);
  CHECK(problem_of(refused.go_on({}, hostile.sections())) ==
        "section virtio-rng 3: has a rate limiter that cannot be");
}

}  // namespace
}  // namespace vireo
