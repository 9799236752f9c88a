// SPDX-License-Identifier: Apache-2.0
// Guest-physical addresses. A GuestAddress converts to neither a pointer nor an integer, so that a
// number of the guest's can never be used as an address of ours by mistake.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>

namespace vireo {

class GuestAddress {
 public:
  constexpr GuestAddress() = default;
  constexpr explicit GuestAddress(std::uint64_t value) : value_(value) {}

  /// The number itself: for ioctls, tables that the guest reads, and messages.
  constexpr std::uint64_t value() const { return value_; }

  /// The address `offset` bytes on, or nothing where the sum leaves 64 bits.
  constexpr std::optional<GuestAddress> checked_add(std::uint64_t offset) const {
    std::uint64_t sum = 0;
    if (__builtin_add_overflow(value_, offset, &sum)) {
      return std::nullopt;
    }
    return GuestAddress(sum);
  }

  constexpr auto operator<=>(const GuestAddress&) const = default;

 private:
  std::uint64_t value_ = 0;
};

/// `size` bytes from `start`; the end is known to stay within 64 bits.
class GuestRange {
 public:
  /// Nothing where start + size leaves 64 bits.
  static constexpr std::optional<GuestRange> create(GuestAddress start, std::uint64_t size) {
    if (!start.checked_add(size)) {
      return std::nullopt;
    }
    return GuestRange(start, size);
  }

  constexpr GuestAddress start() const { return start_; }
  constexpr std::uint64_t size() const { return size_; }
  /// First address behind the range.
  constexpr GuestAddress end() const { return GuestAddress(start_.value() + size_); }
  constexpr bool contains(GuestAddress address) const {
    return address >= start_ && address < end();
  }
  constexpr bool overlaps(const GuestRange& other) const {
    return start_ < other.end() && other.start_ < end();
  }
  constexpr bool operator==(const GuestRange&) const = default;

 private:
  constexpr GuestRange(GuestAddress start, std::uint64_t size) : start_(start), size_(size) {}

  GuestAddress start_;
  std::uint64_t size_ = 0;
};

}  // namespace vireo
