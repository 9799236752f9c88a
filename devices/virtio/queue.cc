// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/queue.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <limits>
#include <utility>

#include "devices/virtio/uapi.h"
#include "src/base/endian.h"

namespace vireo {

namespace {

static_assert(std::endian::native == std::endian::little,
              "ring words are little-endian, and are used in place");

/// §2.7.5.
struct Descriptor {
  le64 address;
  le32 length;
  le16 flags;
  le16 next;
};
static_assert(sizeof(Descriptor) == sizeof(vring_desc));

/// §2.7.8.
struct UsedElement {
  le32 id;
  le32 length;
};
static_assert(sizeof(UsedElement) == sizeof(vring_used_elem));

// §2.7.6 and §2.7.8: flags and index stand before the entries of both rings, the other side's event
// index behind them.
constexpr std::uint64_t kIndexOffset = 2;
constexpr std::uint64_t kEntriesOffset = 4;
constexpr std::uint64_t kAvailEntrySize = 2;

std::uint16_t load(std::uint16_t* word, std::memory_order order) {
  return std::atomic_ref(*word).load(order);
}

void store(std::uint16_t* word, std::uint16_t value, std::memory_order order) {
  std::atomic_ref(*word).store(value, order);
}

/// Between a store for the other side and a load of what it stored: without it both may see the old
/// values, and a wake-up is lost. Release and acquire do not order a store before a load.
void full_fence() {
#ifdef __SANITIZE_THREAD__
  // The sanitizer knows no fences; a read-modify-write is one here, and it knows those.
  static std::atomic<int> fence = 0;
  fence.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

/// Whether index `event` was passed on the way from `old_index` to `new_index`, all modulo 2^16
/// (§2.7.7.2).
bool passed(std::uint16_t event, std::uint16_t new_index, std::uint16_t old_index) {
  const auto since_event = static_cast<std::uint16_t>(new_index - event - 1);
  const auto since_old = static_cast<std::uint16_t>(new_index - old_index);
  return since_event < since_old;
}

template <typename T>
T copy_at(std::span<const std::byte> bytes, std::size_t index) {
  std::array<std::byte, sizeof(T)> copy;
  std::ranges::copy(bytes.subspan(index * sizeof(T), sizeof(T)), copy.begin());
  // The compiler may not read guest memory a second time in place of the copy.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return std::bit_cast<T>(copy);
}

}  // namespace

std::unique_ptr<Queue> Queue::create(const QueueConfig& config, std::uint64_t features,
                                     const GuestMemory& memory, QueueState state) {
  const std::uint64_t size = config.size;
  if (!std::has_single_bit(size) || size > config.max_size ||
      config.desc_table.value() % VRING_DESC_ALIGN_SIZE != 0 ||
      config.avail_ring.value() % VRING_AVAIL_ALIGN_SIZE != 0 ||
      config.used_ring.value() % VRING_USED_ALIGN_SIZE != 0) {
    return nullptr;
  }
  const auto desc_table = memory.slice(config.desc_table, size * sizeof(Descriptor));
  const std::uint64_t avail_event_offset = kEntriesOffset + size * kAvailEntrySize;
  const std::uint64_t used_event_offset = kEntriesOffset + size * sizeof(UsedElement);
  const auto avail = memory.slice(config.avail_ring, avail_event_offset + sizeof(std::uint16_t));
  const auto used = memory.slice(config.used_ring, used_event_offset + sizeof(std::uint16_t));
  if (!desc_table || !avail || !used) {
    return nullptr;
  }
  const auto word = [&memory](GuestAddress ring, std::uint64_t offset) {
    return memory.shared_word(GuestAddress(ring.value() + offset));
  };
  auto queue = std::unique_ptr<Queue>(new Queue());
  queue->memory_ = &memory;
  queue->size_ = config.size;
  queue->event_idx_ = (features & feature_bit(VIRTIO_RING_F_EVENT_IDX)) != 0;
  queue->indirect_ = (features & feature_bit(VIRTIO_RING_F_INDIRECT_DESC)) != 0;
  queue->desc_table_ = *desc_table;
  queue->avail_entries_ = avail->subspan(kEntriesOffset, size * kAvailEntrySize);
  queue->used_ring_ = config.used_ring;
  queue->used_ring_bytes_ = used->size();
  queue->used_entries_ = used->subspan(kEntriesOffset, size * sizeof(UsedElement));
  queue->avail_flags_ = word(config.avail_ring, 0);
  queue->avail_idx_ = word(config.avail_ring, kIndexOffset);
  queue->used_event_ = word(config.avail_ring, avail_event_offset);
  queue->used_flags_ = word(config.used_ring, 0);
  queue->used_idx_ = word(config.used_ring, kIndexOffset);
  queue->avail_event_ = word(config.used_ring, used_event_offset);
  queue->next_avail_ = state.next_avail;
  queue->avail_seen_ = state.next_avail;
  queue->next_used_ = state.next_used;
  queue->signalled_used_ = state.next_used;
  queue->broken_ = state.broken;
  queue->out_.resize(size);
  return queue;
}

QueueState Queue::state() const {
  // Whoever goes on from here owes the driver neither a chain nor an interrupt.
  CHECK(outstanding_ == 0 && signalled_used_ == next_used_);
  return {.next_avail = next_avail_, .next_used = next_used_, .broken = broken_};
}

std::optional<DescriptorChain> Queue::pop() {
  // A driver that has nothing but malformed chains shall not keep the device busy with them.
  for (unsigned tried = 0; tried < size_ && look_for_more(); ++tried) {
    const auto head = copy_at<le16>(avail_entries_, next_avail_ % size_);
    if (head >= size_ || out_[head]) {
      broken_ = true;
      return std::nullopt;
    }
    std::vector<GuestBuffer> storage;
    if (!spare_.empty()) {
      storage = std::move(spare_.back());
      spare_.pop_back();
    }
    DescriptorChain chain(head, std::move(storage));
    ++next_avail_;
    ++outstanding_;
    out_[head] = true;
    if (walk(chain)) {
      return chain;
    }
    ++refused_;
    push_used(std::move(chain), 0);
  }
  return std::nullopt;
}

/// Whether the avail ring has an entry that was not popped.
bool Queue::look_for_more() {
  if (broken_) {
    return false;
  }
  if (next_avail_ != avail_seen_) {
    return true;
  }
  // Acquire: the entries that it announces are read after it.
  avail_seen_ = load(avail_idx_, std::memory_order_acquire);
  if (static_cast<std::uint16_t>(avail_seen_ - next_avail_) > size_) {
    avail_seen_ = next_avail_;
    broken_ = true;
  }
  return next_avail_ != avail_seen_;
}

/// Follows the chain from its head, copying each descriptor once; false where it is malformed.
bool Queue::walk(DescriptorChain& chain) const {
  std::span<const std::byte> table = desc_table_;
  std::size_t index = chain.head_;
  bool in_indirect = false;
  bool seen_writable = false;
  std::uint64_t total = 0;
  // §2.7.5.3.1: no chain is longer than the queue, however its descriptors are spread.
  for (unsigned links = 0; links < size_;) {
    if (index >= table.size() / sizeof(Descriptor)) {
      return false;
    }
    const auto descriptor = copy_at<Descriptor>(table, index);
    if ((descriptor.flags & VRING_DESC_F_INDIRECT) != 0) {
      const auto indirect = memory_->slice(GuestAddress(descriptor.address), descriptor.length);
      if (!indirect_ || in_indirect || (descriptor.flags & VRING_DESC_F_NEXT) != 0 || !indirect ||
          indirect->empty() || indirect->size() % sizeof(Descriptor) != 0) {
        return false;
      }
      table = *indirect;
      index = 0;
      in_indirect = true;
      continue;
    }
    const bool writable = (descriptor.flags & VRING_DESC_F_WRITE) != 0;
    const auto host = memory_->slice(GuestAddress(descriptor.address), descriptor.length);
    if (!host || (seen_writable && !writable)) {
      return false;
    }
    seen_writable = writable;
    total += host->size();
    if (total > std::numeric_limits<std::uint32_t>::max()) {
      return false;
    }
    if (!host->empty()) {
      chain.buffers_.push_back({GuestAddress(descriptor.address), *host});
      chain.readable_count_ += writable ? 0 : 1;
    }
    if ((descriptor.flags & VRING_DESC_F_NEXT) == 0) {
      return true;
    }
    index = descriptor.next;
    ++links;
  }
  return false;
}

void Queue::undo_pop(DescriptorChain chain) {
  CHECK(chain.live_ && outstanding_ > 0);
  --next_avail_;
  --outstanding_;
  out_[chain.head_] = false;
  chain.live_ = false;
  chain.buffers_.clear();
  spare_.push_back(std::move(chain.buffers_));
}

void Queue::push_used(DescriptorChain chain, std::uint32_t written) {
  CHECK(chain.live_ && outstanding_ > 0);
  const auto element = std::bit_cast<std::array<std::byte, sizeof(UsedElement)>>(
      UsedElement{.id = chain.head_, .length = written});
  std::ranges::copy(element,
                    used_entries_.subspan(next_used_ % size_ * sizeof(UsedElement)).begin());
  // All of it: one that failed may have been written to beyond what the driver is told.
  for (const GuestBuffer& buffer : chain.writable()) {
    memory_->mark_written(buffer.address, buffer.host.size());
  }
  ++next_used_;
  --outstanding_;
  out_[chain.head_] = false;
  chain.live_ = false;
  chain.buffers_.clear();
  spare_.push_back(std::move(chain.buffers_));
}

void Queue::publish() {
  // Release: the driver sees the elements, and the bytes of the buffers, before the index.
  store(used_idx_, next_used_, std::memory_order_release);
  mark_ring();
}

bool Queue::needs_interrupt() {
  const std::uint16_t old_used = std::exchange(signalled_used_, next_used_);
  if (old_used == next_used_) {
    return false;
  }
  full_fence();
  if (event_idx_) {
    return passed(load(used_event_, std::memory_order_relaxed), next_used_, old_used);
  }
  return (load(avail_flags_, std::memory_order_relaxed) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
}

void Queue::disarm() {
  if (event_idx_) {
    // An entry that was passed already: the driver notifies when it comes to it, so never.
    store(avail_event_, static_cast<std::uint16_t>(next_avail_ - 1), std::memory_order_relaxed);
  } else {
    store(used_flags_, VRING_USED_F_NO_NOTIFY, std::memory_order_relaxed);
  }
  mark_ring();
}

bool Queue::has_more() const {
  return !broken_ && load(avail_idx_, std::memory_order_relaxed) != next_avail_;
}

bool Queue::rearm() {
  if (event_idx_) {
    store(avail_event_, next_avail_, std::memory_order_relaxed);
  } else {
    store(used_flags_, 0, std::memory_order_relaxed);
  }
  mark_ring();
  full_fence();
  return has_more();
}

}  // namespace vireo
