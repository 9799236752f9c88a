// SPDX-License-Identifier: Apache-2.0
// What every virtio device has to do, whatever it is: run on each of them.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "tests/support/fake_guest.h"
#include "tests/support/pci_driver.h"

namespace vireo {

/// A device for the suite, and requests that it can be given.
struct DeviceUnderTest {
  std::unique_ptr<VirtioDevice> device;
  unsigned queue = 0;
  /// The segments of one request; `number` counts up.
  std::function<std::vector<FakeRing::Segment>(FakeGuest& guest, unsigned number)> request;
  /// Looks at what became of one, some requests of which are in flight at a time.
  std::function<void(FakeGuest& guest, unsigned number, const FakeRing::Used& used)> check;
};
using MakeDevice = std::function<DeviceUnderTest(FakeGuest&)>;

class DeviceSuite {
 public:
  static constexpr unsigned kInFlight = 8;

  DeviceSuite(MakeDevice make, unsigned reactors)
      : make_(std::move(make)), guest_(reactors), made_(make_(guest_)) {
    for (unsigned i = 0; i < kInFlight; ++i) {
      tables_.push_back(guest_.allocate(4096));
    }
  }

  /// All of it, over one transport: MmioDriver or PciDriver.
  template <typename Driver>
  void run() {
    {
      Driver driver(guest_, *made_.device);
      run_with(driver);
    }
    for (const std::uint64_t features : {std::uint64_t{0}, kEventIdx | kIndirect}) {
      INFO("features " << features);
      goes_on_elsewhere<Driver>(features);
    }
  }

 private:
  void run_with(VirtioDriver& driver) {
    for (const std::uint64_t features :
         {std::uint64_t{0}, kEventIdx, kIndirect, kEventIdx | kIndirect}) {
      INFO("features " << features);
      serves(driver, features, 100);
      survives_reset_in_flight(driver, features);
      serves(driver, features, 10);
      stands_still(driver, features);
    }
    crosses_65535(driver);
    refuses_what_it_did_not_offer(driver);
    asks_for_reset(driver);
    serves(driver, kEventIdx | kIndirect, 10);
  }

  /// `count` requests, eight of them in flight, then a reset.
  void serves(VirtioDriver& driver, std::uint64_t features, unsigned count) {
    driver.begin(features);
    REQUIRE((driver.status() & VIRTIO_CONFIG_S_DRIVER_OK) != 0);
    exchange(driver, features, count);
    driver.reset();
    CHECK(driver.status() == 0);
  }

  void exchange(VirtioDriver& driver, std::uint64_t features, unsigned count) {
    std::map<std::uint32_t, unsigned> in_flight;  // head → number
    unsigned begun = 0;
    unsigned ended = 0;
    while (ended < count) {
      while (begun < count && in_flight.size() < kInFlight) {
        in_flight.emplace(add(driver, features, begun), begun);
        ++begun;
        driver.kick(made_.queue);
      }
      const FakeRing::Used used = driver.wait_used(made_.queue);
      REQUIRE(in_flight.contains(used.id));
      made_.check(guest_, in_flight[used.id], used);
      in_flight.erase(used.id);
      ++ended;
    }
  }

  std::uint16_t add(VirtioDriver& driver, std::uint64_t features, unsigned number) {
    const std::vector<FakeRing::Segment> segments = made_.request(guest_, number % kInFlight);
    FakeRing& ring = driver.queue(made_.queue);
    return (features & kIndirect) != 0 && number % 2 == 0
               ? ring.add_indirect(tables_[number % kInFlight], segments)
               : ring.add(segments);
  }

  void survives_reset_in_flight(VirtioDriver& driver, std::uint64_t features) {
    for (int round = 0; round < 20; ++round) {
      driver.begin(features);
      for (unsigned i = 0; i < kInFlight; ++i) {
        add(driver, features, i);
      }
      driver.kick(made_.queue);
      driver.reset();
      CHECK(driver.status() == 0);
    }
  }

  /// Stopped and started again, as a pause does it, with requests that came in meanwhile.
  void stands_still(VirtioDriver& driver, std::uint64_t features) {
    driver.begin(features);
    exchange(driver, features, 3);
    driver.quiesce();
    const std::uint16_t head = add(driver, features, 0);
    driver.kick(made_.queue);
    CHECK_FALSE(driver.queue(made_.queue).take_used());
    driver.resume();
    const FakeRing::Used used = driver.wait_used(made_.queue);
    CHECK(used.id == head);
    made_.check(guest_, 0, used);
    exchange(driver, features, 10);
    driver.reset();
  }

  /// Saved, restored to a device of another machine, and equal; with a request that came when the
  /// first one stood still already.
  template <typename Driver>
  void goes_on_elsewhere(std::uint64_t features) {
    auto driver = std::make_unique<Driver>(guest_, *made_.device);
    driver->begin(features);
    exchange(*driver, features, 11);
    driver->quiesce();
    const std::uint16_t head = add(*driver, features, 0);
    driver->kick(made_.queue);
    SnapshotWriter saved;
    driver->save(saved);

    VirtioDriver::Rings rings = driver->take_rings();
    driver = nullptr;
    made_.device = nullptr;  // and what only one can have
    const auto check = made_.check;
    made_ = make_(guest_);

    Driver next(guest_, *made_.device);
    const Result<> restored = next.go_on(std::move(rings), saved.sections());
    INFO((restored ? "restored" : restored.error().message()));
    REQUIRE(restored);
    SnapshotWriter again;
    next.save(again);
    CHECK(equal(saved.sections(), again.sections()));
    CHECK_FALSE(next.queue(made_.queue).take_used());
    next.resume();
    const FakeRing::Used used = next.wait_used(made_.queue);
    CHECK(used.id == head);
    check(guest_, 0, used);
    exchange(next, features, 20);
    next.reset();
    serves(next, features, 10);
  }

  static bool equal(std::span<const SnapshotSection> one, std::span<const SnapshotSection> other) {
    return std::ranges::equal(one, other, [](const SnapshotSection& a, const SnapshotSection& b) {
      return a.tag == b.tag && a.index == b.index && a.version == b.version &&
             std::ranges::equal(a.bytes, b.bytes);
    });
  }

  void crosses_65535(VirtioDriver& driver) {
    driver.begin(kEventIdx);
    exchange(driver, kEventIdx, 66'000);
    CHECK(driver.queue(made_.queue).avail_index() == 66'000 - 65'536);
    driver.reset();
  }

  void refuses_what_it_did_not_offer(VirtioDriver& driver) {
    driver.negotiate(std::uint64_t{1} << 63);
    CHECK((driver.status() & VIRTIO_CONFIG_S_FEATURES_OK) == 0);
    driver.reset();
  }

  /// A ring that the driver breaks stops; a reset mends it.
  void asks_for_reset(VirtioDriver& driver) {
    driver.begin(kEventIdx);
    FakeRing& ring = driver.queue(made_.queue);
    ring.set_avail_index(static_cast<std::uint16_t>(ring.size() + 1));
    driver.kick(made_.queue);
    while ((driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET) == 0) {
      std::this_thread::yield();
    }
    while ((driver.acknowledge() & VIRTIO_MMIO_INT_CONFIG) == 0) {
      std::this_thread::yield();
    }
    driver.reset();
    CHECK(driver.status() == 0);
  }

  MakeDevice make_;
  FakeGuest guest_;
  DeviceUnderTest made_;
  std::vector<std::uint64_t> tables_;
};

}  // namespace vireo
