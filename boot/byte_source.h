// SPDX-License-Identifier: Apache-2.0
// Bytes of an input that nobody vouches for: a file or a buffer, reached by checked copies only.
// A file is never mapped, because whoever owns it may cut it short or rewrite it at any moment.
//
// Owns nothing; the descriptor or the buffer outlives it. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "src/base/error.h"

namespace vireo {

class ByteSource {
 public:
  explicit ByteSource(std::span<const std::byte> bytes) : bytes_(bytes), size_(bytes.size()) {}
  ByteSource(int fd, std::uint64_t size) : fd_(fd), size_(size) {}

  std::uint64_t size() const { return size_; }

  /// Whether `size` bytes at `offset` lie inside.
  bool contains(std::uint64_t offset, std::uint64_t size) const {
    return offset <= size_ && size <= size_ - offset;
  }

  /// Copies `to.size()` bytes from `offset`; kBadInput where they do not all exist.
  Result<> read(std::uint64_t offset, std::span<std::byte> to) const;

  template <typename T>
  Result<T> read_object(std::uint64_t offset) const {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    TRY(read(offset, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }

 private:
  int fd_ = -1;
  std::span<const std::byte> bytes_;
  std::uint64_t size_ = 0;
};

}  // namespace vireo
