// SPDX-License-Identifier: Apache-2.0
// Driver and device on two threads, each going to sleep while the other has something for it.
#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "devices/virtio/queue.h"
#include "tests/support/catch.h"
#include "tests/virtio/queue_fixture.h"

namespace vireo {
namespace {

using namespace queue_test;  // NOLINT(google-build-using-namespace): the fixture

/// Lets two threads begin each round at nearly the same instant; how near differs from one to the
/// next, since one of them always hears of the other a little later.
class Rounds {
 public:
  void begin(int round, int delay = 0) {
    arrived_.fetch_add(1);
    for (int spins = 0; arrived_.load() < 2 * (round + 1); ++spins) {
      if (spins > 10'000) {
        std::this_thread::yield();  // the other one has no processor
      }
    }
    for (std::atomic<int> i = 0; i.load(std::memory_order_relaxed) < delay;) {
      i.store(i.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
  }

 private:
  std::atomic<int> arrived_ = 0;
};

constexpr int kLitmusRounds = 100'000;

/// Driver: index, then looks whether it must notify. Device: asks for it, then looks at the index.
/// Where neither sees what the other one did, both sleep for ever.
TEST_CASE("queue: a chain made available while the device goes to sleep is not missed") {
  for (const std::uint64_t features : {kEventIdx, std::uint64_t{0}}) {
    const auto f = std::make_unique<Fixture>(4, features);
    Rounds begins;
    Rounds ends;
    std::vector<bool> seen(kLitmusRounds);
    std::thread device([&] {
      for (int round = 0; round < kLitmusRounds; ++round) {
        f->queue->disarm();
        begins.begin(round, round % 97);
        seen[static_cast<std::size_t>(round)] = f->queue->rearm();
        ends.begin(round);
        // Shows what it took only now: it shall not have to do with the litmus.
        f->queue->push_used(*f->queue->pop(), 0);
        f->queue->publish();
      }
    });
    int missed = 0;
    for (int round = 0; round < kLitmusRounds; ++round) {
      const std::uint16_t old_index = f->ring.avail_index();
      f->ring.add({{kData, 4, true}});
      begins.begin(round, round % 89);
      f->ring.publish();
      const bool kick = f->ring.wants_kick(old_index);
      ends.begin(round);
      missed += kick || seen[static_cast<std::size_t>(round)] ? 0 : 1;
      while (!f->ring.take_used()) {
        std::this_thread::yield();
      }
    }
    device.join();
    CHECK(missed == 0);
  }
}

/// Device: used index, then looks whether it must interrupt. Driver: asks for it, then looks at the
/// index.
TEST_CASE("queue: a chain used while the driver goes to sleep is not missed") {
  const auto f = std::make_unique<Fixture>(4, kEventIdx);
  Rounds begins;
  Rounds ends;
  std::vector<bool> interrupted(kLitmusRounds);
  std::thread device([&] {
    for (int round = 0; round < kLitmusRounds; ++round) {
      std::optional<DescriptorChain> chain;
      while (!(chain = f->queue->pop())) {
        std::this_thread::yield();
      }
      f->queue->push_used(std::move(*chain), 0);
      begins.begin(round, round % 97);
      f->queue->publish();
      interrupted[static_cast<std::size_t>(round)] = f->queue->needs_interrupt();
      ends.begin(round);
    }
  });
  int missed = 0;
  for (int round = 0; round < kLitmusRounds; ++round) {
    f->ring.add({{kData, 4, true}});
    f->ring.publish();
    begins.begin(round, round % 89);
    f->ring.set_used_event(f->ring.used_seen());
    FakeRing::fence();
    const bool seen = f->ring.take_used().has_value();
    ends.begin(round);
    missed += seen || interrupted[static_cast<std::size_t>(round)] ? 0 : 1;
    if (!seen) {
      REQUIRE(f->ring.take_used());
    }
    f->ring.set_used_event(static_cast<std::uint16_t>(f->ring.used_seen() - 1));
  }
  device.join();
  CHECK(missed == 0);
}

}  // namespace
}  // namespace vireo
