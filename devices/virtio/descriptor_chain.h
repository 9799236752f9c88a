// SPDX-License-Identifier: Apache-2.0
// One request of the driver: the buffers of a descriptor chain (virtio 1.2 §2.7.13), validated once
// when it was popped, and never read from the descriptor table again.
//
// Owned by one request at a time, on the reactor of its queue; must go back to that queue, by
// push_used() or undo_pop(), and its destructor checks that it did.
//
//   Reader reader(chain.readable());
//   const auto header = reader.read_object<virtio_blk_outhdr>();  // copied; then judge the copy
//   if (!header) …                                               // too short
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/uio.h>

#include "src/base/address.h"
#include "src/base/error.h"

namespace vireo {

/// Guest memory that a descriptor names; within one region. The guest may write to it at any time.
struct GuestBuffer {
  GuestAddress address;
  std::span<std::byte> host;
};

/// Goes through buffers from the first byte to the last. A piece that is asked for is taken whole
/// or not at all.
class BufferCursor {
 public:
  explicit BufferCursor(std::span<const GuestBuffer> buffers);

  /// Bytes that are left.
  std::uint64_t remaining() const { return remaining_; }
  /// False, and nothing taken, where fewer than `size` are left.
  [[nodiscard]] bool skip(std::uint64_t size);
  /// Takes `size` bytes as pieces for a scatter-gather call, appended to `pieces`.
  [[nodiscard]] bool take(std::uint64_t size, std::vector<iovec>& pieces);

 protected:
  /// Calls visit(piece) for each contiguous piece of the next `size` bytes.
  template <typename Visit>
  bool visit(std::uint64_t size, Visit visit);

 private:
  std::span<const GuestBuffer> buffers_;
  std::uint64_t remaining_ = 0;
  std::size_t offset_ = 0;  // in the first of them
};

/// What the driver wrote for the device.
class Reader : public BufferCursor {
 public:
  using BufferCursor::BufferCursor;

  /// Fills all of `bytes`, or takes nothing.
  [[nodiscard]] bool read(std::span<std::byte> bytes);
  template <typename T>
  std::optional<T> read_object() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    if (!read(std::as_writable_bytes(std::span(&value, 1)))) {
      return std::nullopt;
    }
    return value;
  }
};

/// What the device writes for the driver.
class Writer : public BufferCursor {
 public:
  using BufferCursor::BufferCursor;

  /// Writes all of `bytes`, or nothing.
  [[nodiscard]] bool write(std::span<const std::byte> bytes);
  template <typename T>
  [[nodiscard]] bool write_object(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return write(std::as_bytes(std::span(&value, 1)));
  }
};

class DescriptorChain {
 public:
  DescriptorChain(DescriptorChain&& other) noexcept
      : head_(other.head_),
        readable_count_(other.readable_count_),
        live_(std::exchange(other.live_, false)),
        buffers_(std::move(other.buffers_)) {}
  /// Over one that is back already.
  DescriptorChain& operator=(DescriptorChain&& other) noexcept {
    CHECK(!live_);
    head_ = other.head_;
    readable_count_ = other.readable_count_;
    live_ = std::exchange(other.live_, false);
    buffers_ = std::move(other.buffers_);
    return *this;
  }
  DescriptorChain(const DescriptorChain&) = delete;
  DescriptorChain& operator=(const DescriptorChain&) = delete;
  ~DescriptorChain() { CHECK(!live_); }

  /// Its first descriptor: what the driver knows it by. Below the queue's size, and of no other
  /// chain that is out.
  std::uint16_t head() const { return head_; }
  /// For the device to read, and for it to write; in the driver's order, none of them empty, each
  /// sum below 2^32.
  std::span<const GuestBuffer> readable() const {
    return std::span(buffers_).first(readable_count_);
  }
  std::span<const GuestBuffer> writable() const {
    return std::span(buffers_).subspan(readable_count_);
  }

 private:
  friend class Queue;
  DescriptorChain(std::uint16_t head, std::vector<GuestBuffer> storage)
      : head_(head), buffers_(std::move(storage)) {}

  std::uint16_t head_;
  std::size_t readable_count_ = 0;
  bool live_ = true;
  std::vector<GuestBuffer> buffers_;  // the readable ones first
};

}  // namespace vireo
