// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/queue.h"

#include <algorithm>
#include <array>

#include <sys/mman.h>

#include "tests/support/catch.h"
#include "tests/support/fake_ring.h"
#include "tests/virtio/queue_fixture.h"

namespace vireo {
namespace {

using namespace queue_test;  // NOLINT(google-build-using-namespace): the fixture

std::uint64_t size_of(std::span<const GuestBuffer> buffers) {
  return BufferCursor(buffers).remaining();
}

TEST_CASE("queue: a chain comes out as the driver laid it out, and goes back") {
  const auto f = std::make_unique<Fixture>();
  f->bytes[kData] = std::byte{0x17};
  const std::uint16_t head = f->ring.add(
      {{kData, 16, false}, {kData + 4096, 512, false}, {kData + 8192, 1, true}, {0, 4096, true}});
  CHECK_FALSE(f->queue->pop());
  f->ring.publish();
  std::optional<DescriptorChain> chain = f->queue->pop();
  REQUIRE(chain);
  CHECK(chain->head() == head);
  REQUIRE(chain->readable().size() == 2);
  CHECK(chain->readable()[0].address == GuestAddress(kData));
  CHECK(chain->readable()[0].host.data() == &f->bytes[kData]);
  CHECK(size_of(chain->readable()) == 16 + 512);
  CHECK(size_of(chain->writable()) == 1 + 4096);
  CHECK(f->queue->outstanding() == 1);
  CHECK_FALSE(f->queue->pop());

  f->queue->push_used(std::move(*chain), 77);
  CHECK_FALSE(f->ring.take_used());
  f->queue->publish();
  CHECK(f->ring.take_used() == Used{head, 77});
  CHECK(f->queue->outstanding() == 0);
}

TEST_CASE("queue: readers and writers take whole pieces, or nothing") {
  const auto f = std::make_unique<Fixture>();
  f->ring.add(
      {{kData, 3, false}, {kData + 100, 5, false}, {kData + 200, 2, true}, {kData + 300, 4, true}});
  f->ring.publish();
  for (std::size_t i = 0; i < 8; ++i) {
    f->bytes[i < 3 ? kData + i : kData + 100 + i - 3] = static_cast<std::byte>(i);
  }
  std::optional<DescriptorChain> chain = f->queue->pop();
  REQUIRE(chain);
  Reader reader(chain->readable());
  CHECK_FALSE(reader.read_object<std::array<std::byte, 9>>());
  const auto first = reader.read_object<std::array<std::uint8_t, 5>>();
  REQUIRE(first);
  CHECK(*first == std::array<std::uint8_t, 5>{0, 1, 2, 3, 4});
  std::vector<iovec> pieces;
  CHECK_FALSE(reader.take(4, pieces));
  CHECK(pieces.empty());
  CHECK(reader.take(3, pieces));
  REQUIRE(pieces.size() == 1);
  CHECK(pieces[0].iov_base == &f->bytes[kData + 102]);
  CHECK(reader.remaining() == 0);
  CHECK_FALSE(reader.skip(1));

  Writer writer(chain->writable());
  CHECK_FALSE(writer.write_object(std::uint64_t{0}));
  CHECK(writer.skip(1));
  CHECK(writer.write_object(std::uint32_t{0xffffffff}));
  CHECK(writer.remaining() == 1);
  CHECK(f->bytes[kData + 200] == std::byte{0});
  CHECK(f->bytes[kData + 201] == std::byte{0xff});
  CHECK(f->bytes[kData + 302] == std::byte{0xff});
  CHECK(f->bytes[kData + 303] == std::byte{0});
  f->queue->push_used(std::move(*chain), 5);
}

TEST_CASE("queue: indirect descriptors, alone and behind others") {
  const auto f = std::make_unique<Fixture>();
  const std::array<Segment, 3> inner = {
      {{kData, 16, false}, {kData + 512, 8, false}, {kData + 4096, 1, true}}};
  f->ring.add_indirect(kTable, inner);
  f->ring.publish();
  std::optional<DescriptorChain> chain = f->queue->pop();
  REQUIRE(chain);
  CHECK(chain->readable().size() == 2);
  CHECK(chain->writable().size() == 1);
  f->queue->push_used(std::move(*chain), 1);

  // §2.7.5.3.1 lets the last descriptor of a chain be an indirect one.
  const std::uint16_t head = f->ring.add({{kData + 64, 4, false}, {kTable, 48, false}});
  const auto second =
      f->memory->read_object<vring_desc>(GuestAddress(kRing.value() + 16 * std::uint64_t{head}));
  f->ring.write_descriptor(second->next, {kTable, 48, false}, VRING_DESC_F_INDIRECT, 0);
  f->ring.publish();
  chain = f->queue->pop();
  REQUIRE(chain);
  CHECK(size_of(chain->readable()) == 4 + 16 + 8);
  f->queue->push_used(std::move(*chain), 1);
}

TEST_CASE("queue: what a malformed chain is, and that it goes back at once") {
  const auto f = std::make_unique<Fixture>();
  // Each makes head 0 of a fresh ring available.
  struct Case {
    const char* what;
    void (*lay_out)(Fixture&);
  };
  const auto cases = std::to_array<Case>({
      {"a loop",
       [](Fixture& g) {
         g.ring.write_descriptor(0, {kData, 4, false}, VRING_DESC_F_NEXT, 1);
         g.ring.write_descriptor(1, {kData, 4, false}, VRING_DESC_F_NEXT, 0);
       }},
      {"one that points at itself",
       [](Fixture& g) { g.ring.write_descriptor(0, {kData, 4, false}, VRING_DESC_F_NEXT, 0); }},
      {"a next outside the table",
       [](Fixture& g) { g.ring.write_descriptor(0, {kData, 4, false}, VRING_DESC_F_NEXT, 8); }},
      {"a buffer behind memory",
       [](Fixture& g) { g.ring.write_descriptor(0, {kMemorySize, 1, false}, 0, 0); }},
      {"a buffer over the end of memory",
       [](Fixture& g) { g.ring.write_descriptor(0, {kMemorySize - 4, 5, false}, 0, 0); }},
      {"a buffer around the end of the address space",
       [](Fixture& g) { g.ring.write_descriptor(0, {~std::uint64_t{0} - 3, 8, true}, 0, 0); }},
      {"readable after writable",
       [](Fixture& g) {
         g.ring.write_descriptor(0, {kData, 4, true}, VRING_DESC_F_NEXT, 1);
         g.ring.write_descriptor(1, {kData, 4, false}, 0, 0);
       }},
      {"an indirect table within another",
       [](Fixture& g) {
         g.ring.write_descriptor_at(GuestAddress(kTable), {kTable + 64, 16, false},
                                    VRING_DESC_F_INDIRECT, 0);
         g.ring.write_descriptor_at(GuestAddress(kTable + 64), {kData, 4, false}, 0, 0);
         g.ring.write_descriptor(0, {kTable, 16, false}, VRING_DESC_F_INDIRECT, 0);
       }},
      {"an indirect one with a next",
       [](Fixture& g) {
         g.ring.write_descriptor_at(GuestAddress(kTable), {kData, 4, false}, 0, 0);
         g.ring.write_descriptor(0, {kTable, 16, false}, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT,
                                 1);
         g.ring.write_descriptor(1, {kData, 4, false}, 0, 0);
       }},
      {"an indirect table of half a descriptor",
       [](Fixture& g) {
         g.ring.write_descriptor(0, {kTable, 24, false}, VRING_DESC_F_INDIRECT, 0);
       }},
      {"an empty indirect table",
       [](Fixture& g) {
         g.ring.write_descriptor(0, {kTable, 0, false}, VRING_DESC_F_INDIRECT, 0);
       }},
      {"an indirect table outside memory",
       [](Fixture& g) {
         g.ring.write_descriptor(0, {kMemorySize - 8, 16, false}, VRING_DESC_F_INDIRECT, 0);
       }},
      {"an indirect table longer than the queue",
       [](Fixture& g) {
         for (std::uint16_t i = 0; i < 9; ++i) {
           g.ring.write_descriptor_at(GuestAddress(kTable + 16 * std::uint64_t{i}),
                                      {kData, 4, false}, i < 8 ? VRING_DESC_F_NEXT : 0,
                                      static_cast<std::uint16_t>(i + 1));
         }
         g.ring.write_descriptor(0, {kTable, 144, false}, VRING_DESC_F_INDIRECT, 0);
       }},
  });
  for (const Case& c : cases) {
    INFO(c.what);
    c.lay_out(*f);
    f->ring.make_available(0);
    f->ring.publish();
    const std::uint64_t refused = f->queue->refused();
    CHECK_FALSE(f->queue->pop());
    CHECK(f->queue->refused() == refused + 1);
    CHECK_FALSE(f->queue->broken());
    f->queue->publish();
    CHECK(f->ring.take_used() == Used{0, 0});
  }
  // The queue goes on.
  f->ring.write_descriptor(0, {kMemorySize - 4, 4, true}, 0, 0);
  f->ring.make_available(0);
  f->ring.publish();
  std::optional<DescriptorChain> chain = f->queue->pop();
  REQUIRE(chain);
  f->queue->push_used(std::move(*chain), 0);
}

TEST_CASE("queue: indirect descriptors that were not negotiated are malformed") {
  const auto f = std::make_unique<Fixture>(8, kEventIdx);
  const std::array<Segment, 1> inner = {{{kData, 16, false}}};
  f->ring.add_indirect(kTable, inner);
  f->ring.publish();
  CHECK_FALSE(f->queue->pop());
  CHECK(f->queue->refused() == 1);
}

TEST_CASE("queue: a chain's bytes are below 4 GiB") {
  // The same memory again and again: 16 times 256 MiB.
  const std::uint64_t size = std::uint64_t{256} << 20;
  const Result<Mapping> room = Mapping::create(
      size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, "test");
  REQUIRE(room);
  const auto memory = GuestMemory::adopt(GuestAddress(0), room->bytes());
  FakeRing ring(*memory, 32, kRing, 0);
  const auto queue = Queue::create(ring.config(), 0, *memory);
  REQUIRE(queue);
  std::vector<Segment> segments(16, {0, static_cast<std::uint32_t>(size), true});
  ring.add(segments);
  segments.back().length -= 1;
  ring.add(segments);
  ring.publish();
  std::optional<DescriptorChain> chain = queue->pop();
  CHECK(queue->refused() == 1);
  REQUIRE(chain);
  CHECK(size_of(chain->writable()) == 0xffffffff);
  queue->push_used(std::move(*chain), 0);
}

TEST_CASE("queue: what breaks the ring itself") {
  SECTION("an index that jumped") {
    const auto f = std::make_unique<Fixture>();
    f->ring.set_avail_index(9);
    CHECK_FALSE(f->queue->pop());
    CHECK(f->queue->broken());
    CHECK_FALSE(f->queue->rearm());
  }
  SECTION("an index that went back") {
    const auto f = std::make_unique<Fixture>(8, kEventIdx, 100);
    f->ring.set_avail_index(99);
    CHECK_FALSE(f->queue->pop());
    CHECK(f->queue->broken());
  }
  SECTION("a head that is none") {
    const auto f = std::make_unique<Fixture>();
    f->ring.make_available(8);
    f->ring.publish();
    CHECK_FALSE(f->queue->pop());
    CHECK(f->queue->broken());
  }
  SECTION("a head that is out already") {
    const auto f = std::make_unique<Fixture>();
    const std::uint16_t head = f->ring.add({{kData, 4, false}});
    f->ring.make_available(head);
    f->ring.publish();
    std::optional<DescriptorChain> chain = f->queue->pop();
    REQUIRE(chain);
    CHECK_FALSE(f->queue->pop());
    CHECK(f->queue->broken());
    f->queue->push_used(std::move(*chain), 0);
  }
}

TEST_CASE("queue: malformed chains without end do not hold pop() up") {
  const auto f = std::make_unique<Fixture>();
  f->ring.write_descriptor(0, {kMemorySize, 1, false}, 0, 0);
  for (int i = 0; i < 8; ++i) {
    f->ring.make_available(0);
  }
  f->ring.publish();
  CHECK_FALSE(f->queue->pop());
  CHECK(f->queue->refused() == 8);
  CHECK_FALSE(f->queue->broken());
}

TEST_CASE("queue: what the driver may program") {
  const auto f = std::make_unique<Fixture>(8);
  const QueueConfig good = f->ring.config();
  const auto made = [&f](QueueConfig config) {
    return Queue::create(config, 0, *f->memory) != nullptr;
  };
  const auto with = [&good](auto change) {
    QueueConfig config = good;
    change(config);
    return config;
  };
  CHECK(made(good));
  CHECK(made(with([](QueueConfig& c) { c.size = 1; })));
  for (const int size : {0, 3, 7, 16, 32768}) {
    CHECK_FALSE(made(with([size](QueueConfig& c) { c.size = static_cast<std::uint16_t>(size); })));
  }
  CHECK_FALSE(made(with([](QueueConfig& c) { c.desc_table = GuestAddress(8); })));
  CHECK_FALSE(made(with([](QueueConfig& c) { c.avail_ring = GuestAddress(1); })));
  CHECK_FALSE(made(with([](QueueConfig& c) { c.used_ring = GuestAddress(2); })));
  // The last place that each may have, and the next one.
  CHECK(made(with([](QueueConfig& c) { c.desc_table = GuestAddress(kMemorySize - 128); })));
  CHECK_FALSE(made(with([](QueueConfig& c) { c.desc_table = GuestAddress(kMemorySize - 112); })));
  CHECK(made(with([](QueueConfig& c) { c.avail_ring = GuestAddress(kMemorySize - 22); })));
  CHECK_FALSE(made(with([](QueueConfig& c) { c.avail_ring = GuestAddress(kMemorySize - 20); })));
  CHECK(made(with([](QueueConfig& c) { c.used_ring = GuestAddress(kMemorySize - 72); })));
  CHECK_FALSE(made(with([](QueueConfig& c) { c.used_ring = GuestAddress(kMemorySize - 68); })));
  CHECK_FALSE(made(with([](QueueConfig& c) { c.used_ring = GuestAddress(~std::uint64_t{3}); })));
}

TEST_CASE("queue: rings laid over each other harm nobody else") {
  const auto f = std::make_unique<Fixture>();
  QueueConfig config = f->ring.config();
  config.avail_ring = config.used_ring = config.desc_table;
  const auto queue = Queue::create(config, kEventIdx | kIndirect, *f->memory);
  REQUIRE(queue);
  std::ranges::fill(std::span(f->bytes).subspan(kRing.value(), 256), std::byte{1});
  for (int i = 0; i < 300 && !queue->broken(); ++i) {
    if (std::optional<DescriptorChain> chain = queue->pop()) {
      queue->push_used(std::move(*chain), 1);
    }
    queue->publish();
    queue->needs_interrupt();
    queue->rearm();
  }
}

TEST_CASE("queue: undo_pop puts the last chain back") {
  const auto f = std::make_unique<Fixture>();
  const std::uint16_t head = f->ring.add({{kData, 4, false}});
  f->ring.publish();
  std::optional<DescriptorChain> chain = f->queue->pop();
  REQUIRE(chain);
  f->queue->undo_pop(std::move(*chain));
  CHECK(f->queue->state().next_avail == 0);
  chain = f->queue->pop();
  REQUIRE(chain);
  CHECK(chain->head() == head);
  f->queue->push_used(std::move(*chain), 0);
}

TEST_CASE("queue: indices cross 65535") {
  for (const std::uint64_t features : {std::uint64_t{0}, kEventIdx}) {
    const auto f = std::make_unique<Fixture>(8, features, 65530);
    for (int round = 0; round < 20; ++round) {
      const std::uint16_t head = f->ring.add({{kData, 4, true}});
      f->ring.publish();
      std::optional<DescriptorChain> chain = f->queue->pop();
      REQUIRE(chain);
      f->ring.set_used_event(f->ring.used_seen());
      f->queue->push_used(std::move(*chain), 4);
      f->queue->publish();
      CHECK(f->queue->needs_interrupt());
      CHECK(f->ring.take_used() == Used{head, 4});
    }
    CHECK(f->queue->state().next_avail == 14);
  }
}

TEST_CASE("queue: interrupts only where the driver asked for them") {
  SECTION("by event index") {
    const auto f = std::make_unique<Fixture>(8, kEventIdx);
    f->ring.set_used_event(2);
    std::vector<bool> interrupts;
    for (int i = 0; i < 5; ++i) {
      f->ring.add({{kData, 4, true}});
      f->ring.publish();
      f->queue->push_used(*f->queue->pop(), 0);
      f->queue->publish();
      interrupts.push_back(f->queue->needs_interrupt());
      f->ring.take_used();
    }
    CHECK(interrupts == std::vector<bool>{false, false, true, false, false});
  }
  SECTION("by a batch that passes it") {
    const auto f = std::make_unique<Fixture>(8, kEventIdx);
    f->ring.set_used_event(1);
    for (int i = 0; i < 4; ++i) {
      f->ring.add({{kData, 4, true}});
    }
    f->ring.publish();
    while (std::optional<DescriptorChain> chain = f->queue->pop()) {
      f->queue->push_used(std::move(*chain), 0);
    }
    f->queue->publish();
    CHECK(f->queue->needs_interrupt());
    CHECK_FALSE(f->queue->needs_interrupt());
  }
  SECTION("by flag") {
    const auto f = std::make_unique<Fixture>(8, 0);
    for (const bool no : {true, false}) {
      f->ring.set_no_interrupt(no);
      f->ring.add({{kData, 4, true}});
      f->ring.publish();
      f->queue->push_used(*f->queue->pop(), 0);
      f->queue->publish();
      CHECK(f->queue->needs_interrupt() == !no);
    }
  }
}

TEST_CASE("queue: notifications are asked for when the ring was found empty") {
  SECTION("by event index") {
    const auto f = std::make_unique<Fixture>(8, kEventIdx, 65535);
    CHECK_FALSE(f->queue->rearm());
    const std::uint16_t old_index = f->ring.avail_index();
    f->ring.add({{kData, 4, true}});
    f->ring.publish();
    CHECK(f->ring.wants_kick(old_index));
    CHECK(f->queue->rearm());
    f->queue->push_used(*f->queue->pop(), 0);
    // Not asked again: the next one needs none.
    const std::uint16_t next_index = f->ring.avail_index();
    f->ring.add({{kData, 4, true}});
    f->ring.publish();
    CHECK_FALSE(f->ring.wants_kick(static_cast<std::uint16_t>(next_index + 1)));
    f->queue->push_used(*f->queue->pop(), 0);
  }
  SECTION("by flag") {
    const auto f = std::make_unique<Fixture>(8, 0);
    f->queue->disarm();
    CHECK(f->ring.used_flags() == VRING_USED_F_NO_NOTIFY);
    CHECK_FALSE(f->queue->rearm());
    CHECK(f->ring.used_flags() == 0);
  }
}

}  // namespace
}  // namespace vireo
