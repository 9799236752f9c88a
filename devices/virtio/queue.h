// SPDX-License-Identifier: Apache-2.0
// A split virtqueue (virtio 1.2 §2.7): what the driver programs about it, and the live ring.
//
//   while (auto chain = queue.pop()) {          // validated
//     …
//     queue.push_used(std::move(*chain), written);
//   }
//   queue.publish();                            // once for a batch
//   if (queue.needs_interrupt()) interrupt.raise();
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "devices/virtio/descriptor_chain.h"
#include "src/base/address.h"
#include "src/memory/guest_memory.h"

namespace vireo {

/// The registers of one queue, as the driver has written them. Owned by the transport.
struct QueueConfig {
  std::uint16_t max_size = 0;  ///< the device's; 0: no such queue
  std::uint16_t size = 0;      ///< the driver's
  bool ready = false;
  GuestAddress desc_table;
  GuestAddress avail_ring;  ///< the driver area
  GuestAddress used_ring;   ///< the device area
  void fields(auto& ar) { ar(max_size, size, ready, desc_table, avail_ring, used_ring); }
};

// Transports have each address as two registers of 32 bits.
constexpr std::uint32_t low_half(GuestAddress address) {
  return static_cast<std::uint32_t>(address.value());
}
constexpr std::uint32_t high_half(GuestAddress address) {
  return static_cast<std::uint32_t>(address.value() >> 32);
}
constexpr GuestAddress with_low_half(GuestAddress address, std::uint32_t low) {
  return GuestAddress(std::uint64_t{high_half(address)} << 32 | low);
}
constexpr GuestAddress with_high_half(GuestAddress address, std::uint32_t high) {
  return GuestAddress(std::uint64_t{high} << 32 | low_half(address));
}

/// What a queue knows beside its registers, while no chain of it is out.
struct QueueState {
  std::uint16_t next_avail = 0;  ///< the entry of the avail ring that is popped next, counted on
  std::uint16_t next_used = 0;   ///< the entry of the used ring that is pushed next, counted on
  bool broken = false;           ///< see Queue::broken()
  void fields(auto& ar) { ar(next_avail, next_used, broken); }
};

/// The live ring. Owned by its transport, used on its reactor's thread only; guest memory outlives
/// it. Indices are the device's own: the guest's copies are compared with them and never believed.
class Queue {
 public:
  /// nullptr where the driver programmed what no queue can be: a size that is no power of two or
  /// above the maximum, a ring that is misaligned or not all in memory.
  static std::unique_ptr<Queue> create(const QueueConfig& config, std::uint64_t features,
                                       const GuestMemory& memory, QueueState state = {});
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() { CHECK(outstanding_ == 0); }

  /// The next chain; nothing where there is none, or the queue is broken. A chain that is malformed
  /// (a loop, a buffer outside memory, readable after writable …) goes back with length 0 and is
  /// counted in refused().
  std::optional<DescriptorChain> pop();
  /// Puts back the chain that was popped last, to be popped again.
  void undo_pop(DescriptorChain chain);
  /// Gives the chain back, of which `written` bytes were written, from the first writable one on.
  void push_used(DescriptorChain chain, std::uint32_t written);
  /// Shows the driver what was pushed.
  void publish();
  /// After publish(): whether the driver wants an interrupt for what it has not been told of.
  bool needs_interrupt();

  /// Asks for no notification while chains are being popped, or looked for: a hint.
  void disarm();
  /// Whether pop() would find something.
  bool has_more() const;
  /// Asks for a notification of the next chain. True where one came in before that could take
  /// effect: pop again.
  bool rearm();

  /// The driver broke the ring itself (an index that jumped, a head twice): it has to be reset.
  bool broken() const { return broken_; }
  /// Chains that are popped and not given back.
  unsigned outstanding() const { return outstanding_; }
  /// Malformed chains so far.
  std::uint64_t refused() const { return refused_; }
  std::uint16_t size() const { return size_; }
  /// While outstanding() is 0, and everything is published.
  QueueState state() const;

 private:
  Queue() = default;

  bool look_for_more();
  bool walk(DescriptorChain& chain) const;
  void mark_ring() const { memory_->mark_written(used_ring_, used_ring_bytes_); }

  const GuestMemory* memory_ = nullptr;
  std::uint16_t size_ = 0;
  bool event_idx_ = false;
  bool indirect_ = false;
  // Parts of the rings in guest memory. Single words are reached by atomic_ref only.
  std::span<const std::byte> desc_table_;
  std::span<const std::byte> avail_entries_;
  std::span<std::byte> used_entries_;
  GuestAddress used_ring_;  // all that the device writes of the rings
  std::uint64_t used_ring_bytes_ = 0;
  std::uint16_t* avail_flags_ = nullptr;
  std::uint16_t* avail_idx_ = nullptr;
  std::uint16_t* used_event_ = nullptr;
  std::uint16_t* used_flags_ = nullptr;
  std::uint16_t* used_idx_ = nullptr;
  std::uint16_t* avail_event_ = nullptr;

  std::uint16_t next_avail_ = 0;
  std::uint16_t avail_seen_ = 0;  // the driver's index, when it was last read
  std::uint16_t next_used_ = 0;
  std::uint16_t signalled_used_ = 0;  // next_used_ when an interrupt was last decided on
  bool broken_ = false;
  unsigned outstanding_ = 0;
  std::uint64_t refused_ = 0;
  std::vector<bool> out_;                        // by head
  std::vector<std::vector<GuestBuffer>> spare_;  // storage of chains that came back
};

}  // namespace vireo
