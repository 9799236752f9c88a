// SPDX-License-Identifier: Apache-2.0
// A queue and its driver in a little memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "devices/virtio/queue.h"
#include "devices/virtio/uapi.h"
#include "src/memory/guest_memory.h"
#include "tests/support/catch.h"
#include "tests/support/fake_ring.h"

namespace vireo::queue_test {

inline constexpr std::uint64_t kMemorySize = 1 << 20;
inline constexpr GuestAddress kRing(0x1000);
inline constexpr std::uint64_t kData = 0x80000;
inline constexpr std::uint64_t kTable = 0x40000;
inline constexpr std::uint64_t kEventIdx = feature_bit(VIRTIO_RING_F_EVENT_IDX);
inline constexpr std::uint64_t kIndirect = feature_bit(VIRTIO_RING_F_INDIRECT_DESC);

using Segment = FakeRing::Segment;
using Used = FakeRing::Used;

struct Fixture {
  explicit Fixture(std::uint16_t size = 8, std::uint64_t features = kEventIdx | kIndirect,
                   std::uint16_t start = 0)
      : ring(*memory, size, kRing, features) {
    ring.start_at(start);
    queue =
        Queue::create(ring.config(), features, *memory, {.next_avail = start, .next_used = start});
    REQUIRE(queue);
  }

  alignas(4096) std::array<std::byte, kMemorySize> bytes{};
  std::unique_ptr<GuestMemory> memory = GuestMemory::adopt(GuestAddress(0), bytes);
  FakeRing ring;
  std::unique_ptr<Queue> queue;
};

}  // namespace vireo::queue_test
