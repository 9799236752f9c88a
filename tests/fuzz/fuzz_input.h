// SPDX-License-Identifier: Apache-2.0
// The bytes of a fuzz input, taken from the front one number after the other; zeros at its end.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vireo {

class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  bool empty() const { return rest_.empty(); }

  std::uint8_t byte() {
    const std::uint8_t value = rest_.empty() ? 0 : rest_.front();
    rest_ = rest_.subspan(rest_.empty() ? 0 : 1);
    return value;
  }

  /// `bytes` bytes as a number, the lowest first.
  std::uint64_t number(unsigned bytes) {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < bytes; ++i) {
      value |= std::uint64_t{byte()} << (8 * i);
    }
    return value;
  }

  void fill(std::span<std::byte> target) {
    std::ranges::generate(target, [this] { return std::byte{byte()}; });
  }

 private:
  std::span<const std::uint8_t> rest_;
};

}  // namespace vireo
