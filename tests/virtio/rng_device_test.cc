// SPDX-License-Identifier: Apache-2.0
#include "devices/rng/rng_device.h"

#include <algorithm>

#include "tests/support/catch.h"
#include "tests/support/device_suite.h"

namespace vireo {
namespace {

constexpr std::uint32_t kBytes = 64;

DeviceUnderTest make_rng(FakeGuest& guest) {
  const std::uint64_t data = guest.allocate(DeviceSuite::kInFlight * kBytes);
  const auto buffer = [data](unsigned number) { return data + std::uint64_t{number} * kBytes; };
  return {
      .device = std::make_unique<RngDevice>(),
      .request =
          [buffer](FakeGuest& g, unsigned number) {
            std::ranges::fill(g.bytes().subspan(buffer(number), kBytes), std::byte{0});
            return std::vector<FakeRing::Segment>{{buffer(number), kBytes / 2, true},
                                                  {buffer(number) + kBytes / 2, kBytes / 2, true}};
          },
      .check =
          [buffer](FakeGuest& g, unsigned number, const FakeRing::Used& used) {
            CHECK(used.length == kBytes);
            const auto bytes = g.bytes().subspan(buffer(number % DeviceSuite::kInFlight), kBytes);
            CHECK(std::ranges::count(bytes, std::byte{0}) < 16);
          }};
}

TEST_CASE("rng: what every device does, over MMIO, with one reactor and with three") {
  DeviceSuite(make_rng, 1).run<MmioDriver>();
  DeviceSuite(make_rng, 3).run<MmioDriver>();
}

TEST_CASE("rng: what every device does, over PCI, with one reactor and with three") {
  DeviceSuite(make_rng, 1).run<PciDriver>();
  DeviceSuite(make_rng, 3).run<PciDriver>();
}

TEST_CASE("rng: a buffer that is huge is filled in part, one that is readable not at all") {
  FakeGuest guest(1);
  RngDevice device;
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx);
  const std::uint64_t data = guest.allocate(1 << 20);
  driver.queue(0).add({{data, 1 << 20, true}});
  driver.queue(0).add({{data, 16, false}});
  driver.kick(0);
  CHECK(driver.wait_used(0).length == 64 << 10);
  CHECK(driver.wait_used(0).length == 0);
}

TEST_CASE("rng: each notification is seen, also where the kernel has no poll that stays armed") {
  for (const bool multishot : {true, false}) {
    FakeGuest guest(1, std::uint64_t{16} << 20, {.features = {.multishot = multishot}});
    RngDevice device;
    MmioDriver driver(guest, device);
    driver.begin(kEventIdx);
    const std::uint64_t data = guest.allocate(kBytes);
    for (int i = 0; i < 20; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // it has gone to sleep
      driver.queue(0).add({{data, kBytes, true}});
      driver.kick(0);
      CHECK(driver.wait_used(0).length == kBytes);
    }
    driver.reset();
  }
}

TEST_CASE("rng: a limit holds, and a reset does not wait for it") {
  FakeGuest guest(1);
  constexpr std::uint64_t kMillisecond = 1'000'000;
  RngDevice device({.bandwidth = TokenBucketConfig{.size = 4096, .refill_ns = 200 * kMillisecond}});
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx);
  const std::uint64_t data = guest.allocate(4096);
  const std::uint64_t began = monotonic_ns();
  for (int i = 0; i < 3; ++i) {
    driver.queue(0).add({{data, 2048, true}});
  }
  driver.kick(0);
  for (int i = 0; i < 3; ++i) {
    CHECK(driver.wait_used(0).length == 2048);
  }
  CHECK(monotonic_ns() - began >= 100 * kMillisecond);
  driver.queue(0).add({{data, 4096, true}});
  driver.kick(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  driver.reset();
  CHECK(driver.status() == 0);
}

}  // namespace
}  // namespace vireo
