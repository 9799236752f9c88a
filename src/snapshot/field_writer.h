// SPDX-License-Identifier: Apache-2.0
// How state becomes bytes and state again: little-endian numbers one behind the other. A struct of
// state has one function that names its fields, used in both directions, so they cannot drift:
//
//   struct TimerState {
//     static constexpr std::string_view kTag = "timer";  // of its section, see snapshot.h
//     static constexpr std::uint32_t kVersion = 2;       // counts up when its fields change
//     std::uint64_t period_ns = 0;
//     bool armed = false;
//     std::vector<LateTick> late;                        // has a fields() too
//
//     void fields(auto& ar) {
//       ar(period_ns, armed);
//       if (ar.version() >= 2) {                         // older files are read for good
//         ar.list(late, kLateMax);
//       }
//     }
//   };
//
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "src/base/address.h"
#include "src/base/endian.h"
#include "src/base/error.h"

namespace vireo {

class FieldWriter {
 public:
  explicit FieldWriter(std::uint32_t version) : version_(version) {}

  std::uint32_t version() const { return version_; }
  template <typename... T>
  void operator()(T&... fields) {
    (field(fields), ...);
  }
  /// A count, and so many entries, which are at most `most`.
  template <typename T>
  void list(std::vector<T>& items, std::size_t most) {
    CHECK(items.size() <= most);
    auto count = static_cast<std::uint32_t>(items.size());
    field(count);
    if constexpr (std::same_as<T, std::byte>) {
      append(items);
    } else {
      for (T& item : items) {
        field(item);
      }
    }
  }
  /// The same of a text.
  void text(std::string& text, std::size_t most) {
    CHECK(text.size() <= most);
    auto count = static_cast<std::uint32_t>(text.size());
    field(count);
    append(std::as_bytes(std::span(text)));
  }

  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  template <std::unsigned_integral T>
  void field(T& value) {
    append(std::bit_cast<std::array<std::byte, sizeof(T)>>(LittleEndian<T>(value)));
  }
  void field(bool& value) { bytes_.push_back(std::byte{value}); }
  void field(std::byte& value) { bytes_.push_back(value); }
  void field(GuestAddress& value) {
    std::uint64_t number = value.value();
    field(number);
  }
  template <std::size_t N>
  void field(std::array<std::byte, N>& bytes) {
    append(bytes);
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
  void append(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }

  std::uint32_t version_;
  std::vector<std::byte> bytes_;
};

}  // namespace vireo
