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
// What is read may be hostile. Here it is kept within its bytes; whether the numbers make sense is
// for who asked for them to see before using them.
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
    for (T& item : items) {
      field(item);
    }
  }

  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  template <std::unsigned_integral T>
  void field(T& value) {
    const auto wire = std::bit_cast<std::array<std::byte, sizeof(T)>>(LittleEndian<T>(value));
    bytes_.insert(bytes_.end(), wire.begin(), wire.end());
  }
  void field(bool& value) { bytes_.push_back(std::byte{value}); }
  void field(std::byte& value) { bytes_.push_back(value); }
  void field(GuestAddress& value) {
    std::uint64_t number = value.value();
    field(number);
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

  std::uint32_t version_;
  std::vector<std::byte> bytes_;
};

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
    for (T& item : items) {
      field(item);
    }
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
