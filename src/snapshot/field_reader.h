// SPDX-License-Identifier: Apache-2.0
// The way back of field_writer.h, with the same fields() of a struct of state. What is read may be
// hostile. Here it is kept within its bytes; whether the numbers make sense is for who asked for
// them to see before using them.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "src/base/address.h"
#include "src/base/endian.h"

namespace vireo {

/// From the first thing on that is wrong, every field reads as zero: see problem().
class FieldReader {
 public:
  /// `bytes` outlive it.
  FieldReader(std::span<const std::byte> bytes, std::uint32_t version)
      : version_(version), rest_(bytes) {}

  std::uint32_t version() const { return version_; }
  template <typename... T>
  void operator()(T&... fields) {
    (field(fields), ...);
  }
  template <typename T>
  void list(std::vector<T>& items, std::size_t most) {
    items.resize(take_count(most));
    if constexpr (std::same_as<T, std::byte>) {
      take(items);
    } else {
      for (T& item : items) {
        field(item);
      }
    }
  }
  void text(std::string& text, std::size_t most) {
    text.resize(take_count(most));
    take(std::as_writable_bytes(std::span(text)));
  }

  /// After the last field: what is wrong with the bytes, of which none may be left; empty: nothing.
  const std::string& problem();

 private:
  template <std::unsigned_integral T>
  void field(T& value) {
    std::array<std::byte, sizeof(T)> wire = {};
    take(wire);
    value = std::bit_cast<LittleEndian<T>>(wire);
  }
  void field(bool& value);
  void field(std::byte& value) { take(std::span(&value, 1)); }
  void field(GuestAddress& value) {
    std::uint64_t number = 0;
    field(number);
    value = GuestAddress(number);
  }
  template <std::size_t N>
  void field(std::array<std::byte, N>& bytes) {
    take(bytes);
  }
  template <typename T, std::size_t N>
  void field(std::array<T, N>& items) {
    for (T& item : items) {
      field(item);
    }
  }
  template <typename T>
    requires std::is_class_v<T>
  void field(T& state) {
    state.fields(*this);
  }

  void take(std::span<std::byte> bytes);
  std::size_t take_count(std::size_t most);

  std::uint32_t version_;
  std::span<const std::byte> rest_;
  std::string problem_;
};

}  // namespace vireo
