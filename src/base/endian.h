// SPDX-License-Identifier: Apache-2.0
// Little-endian integers as bytes: alignment 1 and no padding, so a struct of them has exactly the
// layout of the wire or of guest memory, without any packed attribute (g++ ignores that on structs
// with class members).
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace vireo {

template <typename T>
class LittleEndian {
 public:
  constexpr LittleEndian() = default;
  // Implicit in both directions on purpose: a wire struct reads like one of plain integers.
  constexpr LittleEndian(T value) : bytes_(std::bit_cast<Bytes>(to_wire(value))) {}
  constexpr operator T() const { return to_wire(std::bit_cast<T>(bytes_)); }

 private:
  using Bytes = std::array<std::byte, sizeof(T)>;

  static constexpr T to_wire(T value) {
    if constexpr (std::endian::native == std::endian::little) {
      return value;
    } else {
      return std::byteswap(value);
    }
  }

  Bytes bytes_{};
};

using le16 = LittleEndian<std::uint16_t>;
using le32 = LittleEndian<std::uint32_t>;
using le64 = LittleEndian<std::uint64_t>;

static_assert(alignof(le64) == 1 && sizeof(le64) == 8);

}  // namespace vireo
