// SPDX-License-Identifier: Apache-2.0
// The driver's side of a split virtqueue (virtio 1.2 §2.7.13), for tests: as a guest would do it,
// and as a hostile one might.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "devices/virtio/queue.h"
#include "devices/virtio/uapi.h"
#include "src/memory/guest_memory.h"
#include "tests/support/catch.h"

namespace vireo {

class FakeRing {
 public:
  struct Segment {
    std::uint64_t address = 0;
    std::uint32_t length = 0;
    bool writable = false;
  };
  struct Used {
    std::uint32_t id = 0;
    std::uint32_t length = 0;
    bool operator==(const Used&) const = default;
  };

  /// The three parts lie from `base` on, in `footprint(size)` bytes.
  FakeRing(GuestMemory& memory, std::uint16_t size, GuestAddress base, std::uint64_t features)
      : memory_(memory),
        size_(size),
        base_(base),
        event_idx_((features & feature_bit(VIRTIO_RING_F_EVENT_IDX)) != 0),
        free_(size) {
    for (std::uint16_t i = 0; i < size; ++i) {
      free_[i] = static_cast<std::uint16_t>(size - 1 - i);
    }
  }

  static std::uint64_t footprint(std::uint16_t size) {
    return offset_of_used(size) + 6 + 8 * std::uint64_t{size};
  }

  QueueConfig config() const {
    return {.max_size = size_,
            .size = size_,
            .ready = true,
            .desc_table = base_,
            .avail_ring = avail(0),
            .used_ring = used(0)};
  }
  std::uint16_t size() const { return size_; }

  /// Indices that count on from elsewhere, as after 65,536 chains; before anything else.
  void start_at(std::uint16_t index) {
    avail_idx_ = index;
    used_seen_ = index;
    store(avail(2), index);
    store(used(2), index);
  }

  /// Makes a chain available, to be seen at publish(); returns its head.
  std::uint16_t add(std::span<const Segment> segments) {
    std::vector<std::uint16_t> indices;
    for (std::size_t i = 0; i < segments.size(); ++i) {
      indices.push_back(take_free());
    }
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const bool last = i + 1 == segments.size();
      write_descriptor(indices[i], segments[i], last ? 0 : VRING_DESC_F_NEXT,
                       last ? 0 : indices[i + 1]);
    }
    chains_.push_back(indices);
    make_available(indices.front());
    return indices.front();
  }
  std::uint16_t add(std::initializer_list<Segment> segments) {
    return add(std::span(segments.begin(), segments.size()));
  }
  /// The same by one descriptor, with the others in a table at `table`.
  std::uint16_t add_indirect(std::uint64_t table, std::span<const Segment> segments) {
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const bool last = i + 1 == segments.size();
      write_descriptor_at(GuestAddress(table + 16 * i), segments[i], last ? 0 : VRING_DESC_F_NEXT,
                          static_cast<std::uint16_t>(last ? 0 : i + 1));
    }
    const std::uint16_t head = take_free();
    write_descriptor(head,
                     {.address = table, .length = static_cast<std::uint32_t>(16 * segments.size())},
                     VRING_DESC_F_INDIRECT, 0);
    chains_.push_back({head});
    make_available(head);
    return head;
  }
  bool has_room(std::size_t descriptors) const { return free_.size() >= descriptors; }

  void publish() { store(avail(2), avail_idx_); }
  /// With event indices: whether the device asked to be told of what was published since
  /// `old_index`.
  bool wants_kick(std::uint16_t old_index) const {
    fence();
    if (!event_idx_) {
      return (used_flags() & VRING_USED_F_NO_NOTIFY) == 0;
    }
    const std::uint16_t event = load(used(4 + 8 * std::uint64_t{size_}));
    return static_cast<std::uint16_t>(avail_idx_ - event - 1) <
           static_cast<std::uint16_t>(avail_idx_ - old_index);
  }
  /// Between a store for the device and a load of what it stored.
  static void fence() {
    static std::atomic<int> fence = 0;  // not a fence: the thread sanitizer knows none
    fence.fetch_add(1, std::memory_order_seq_cst);
  }
  std::uint16_t avail_index() const { return avail_idx_; }
  std::uint16_t used_flags() const { return load(used(0)); }

  std::optional<Used> take_used() {
    if (load(used(2)) == used_seen_) {
      return std::nullopt;
    }
    const GuestAddress at = used(4 + 8 * std::uint64_t{used_seen_++} % (8 * size_));
    const auto element = memory_.read_object<vring_used_elem>(at);
    REQUIRE(element);
    for (const std::vector<std::uint16_t>& chain : chains_) {
      if (chain.front() == element->id) {
        free_.insert(free_.end(), chain.begin(), chain.end());
        std::erase(chains_, chain);
        break;
      }
    }
    return Used{.id = element->id, .length = element->len};
  }
  /// Asks for an interrupt at used index `index` (§2.7.7.2), or for none by the flag.
  void set_used_event(std::uint16_t index) { store(avail(4 + 2 * std::uint64_t{size_}), index); }
  void set_no_interrupt(bool no) { store(avail(0), no ? VRING_AVAIL_F_NO_INTERRUPT : 0); }
  std::uint16_t used_seen() const { return used_seen_; }

  // What no driver does.
  void write_descriptor(std::uint16_t index, const Segment& segment, unsigned flags,
                        std::uint16_t next) {
    write_descriptor_at(GuestAddress(base_.value() + 16 * std::uint64_t{index}), segment, flags,
                        next);
  }
  void write_descriptor_at(GuestAddress at, const Segment& segment, unsigned flags,
                           std::uint16_t next) {
    const unsigned write = segment.writable ? VRING_DESC_F_WRITE : 0;
    REQUIRE(memory_.write_object(at, vring_desc{.addr = segment.address,
                                                .len = segment.length,
                                                .flags = static_cast<std::uint16_t>(flags | write),
                                                .next = next}));
  }
  void make_available(std::uint16_t head) {
    store(avail(4 + 2 * std::uint64_t{avail_idx_++} % (2 * size_)), head);
  }
  void set_avail_index(std::uint16_t index) {
    avail_idx_ = index;
    publish();
  }

 private:
  static std::uint64_t offset_of_avail(std::uint16_t size) { return 16 * std::uint64_t{size}; }
  static std::uint64_t offset_of_used(std::uint16_t size) {
    return (offset_of_avail(size) + 6 + 2 * std::uint64_t{size} + 3) & ~std::uint64_t{3};
  }
  GuestAddress avail(std::uint64_t offset) const {
    return GuestAddress(base_.value() + offset_of_avail(size_) + offset);
  }
  GuestAddress used(std::uint64_t offset) const {
    return GuestAddress(base_.value() + offset_of_used(size_) + offset);
  }
  std::uint16_t take_free() {
    REQUIRE(!free_.empty());
    const std::uint16_t index = free_.back();
    free_.pop_back();
    return index;
  }
  void store(GuestAddress at, std::uint16_t value) const {
    std::atomic_ref(*memory_.shared_word(at)).store(value, std::memory_order_release);
  }
  std::uint16_t load(GuestAddress at) const {
    return std::atomic_ref(*memory_.shared_word(at)).load(std::memory_order_acquire);
  }

  GuestMemory& memory_;
  std::uint16_t size_;
  GuestAddress base_;
  bool event_idx_;
  std::vector<std::uint16_t> free_;
  std::vector<std::vector<std::uint16_t>> chains_;
  std::uint16_t avail_idx_ = 0;
  std::uint16_t used_seen_ = 0;
};

}  // namespace vireo
