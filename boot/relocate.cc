// SPDX-License-Identifier: Apache-2.0
#include "boot/relocate.h"

#include <algorithm>
#include <cstring>

#include "src/base/endian.h"

namespace vireo {

namespace {

using Places = std::span<const std::uint32_t>;

/// Entries are addresses cut to 32 bits and extended by their sign: the top 2 GiB.
constexpr std::uint64_t kTopOfAddressSpace = 0xffffffff80000000;

bool all_inside(Places places, std::uint32_t first, std::uint64_t image_size, std::size_t width) {
  return image_size >= width && std::ranges::all_of(places, [&](std::uint32_t place) {
           // A place before the image wraps round to a large offset.
           return place - first <= image_size - width;
         });
}

template <typename T>
void add_at_each(std::span<std::byte> image, Places places, std::uint32_t first, T delta) {
  for (const std::uint32_t place : places) {
    LittleEndian<T> value;
    std::byte* const at = image.data() + (place - first);
    std::memcpy(&value, at, sizeof(value));
    value = static_cast<T>(value + delta);
    std::memcpy(at, &value, sizeof(value));
  }
}

Error no_table() {
  return {ErrorCode::kBadInput, "no relocation table, or a damaged one"};
}

}  // namespace

Result<RelocationTable> RelocationTable::create(std::vector<std::uint32_t> words,
                                                std::uint64_t virtual_start,
                                                std::uint64_t image_size) {
  if (words.empty() || words.front() != 0 || virtual_start < kTopOfAddressSpace ||
      image_size > ~virtual_start) {
    return std::unexpected(no_table());
  }
  const auto zeros = std::ranges::count(words, 0U);
  if (zeros != 2 && zeros != 3) {
    return std::unexpected(no_table());
  }
  RelocationTable table(std::move(words));
  table.first_place_ = static_cast<std::uint32_t>(virtual_start);
  table.image_size_ = image_size;
  // Forwards: 0, 64-bit places, 0, [backward 32-bit places, 0,] 32-bit places.
  Places rest = Places(table.words_).subspan(1);
  const auto take_group = [&rest] {
    const auto size = static_cast<std::size_t>(std::ranges::find(rest, 0U) - rest.begin());
    const Places group = rest.first(size);
    rest = rest.subspan(std::min(size + 1, rest.size()));
    return group;
  };
  table.absolute64_ = take_group();
  if (zeros == 3) {
    table.inverse32_ = take_group();
  }
  table.absolute32_ = take_group();
  // Every kernel has both kinds; a few zeros behind an ELF file are no table.
  if (table.absolute64_.empty() || table.absolute32_.empty()) {
    return std::unexpected(no_table());
  }
  if (!all_inside(table.absolute64_, table.first_place_, image_size, sizeof(std::uint64_t)) ||
      !all_inside(table.inverse32_, table.first_place_, image_size, sizeof(std::uint32_t)) ||
      !all_inside(table.absolute32_, table.first_place_, image_size, sizeof(std::uint32_t))) {
    return std::unexpected(no_table());
  }
  return table;
}

void RelocationTable::apply(std::span<std::byte> image, std::uint64_t delta) const {
  CHECK(image.size() == image_size_);
  add_at_each<std::uint32_t>(image, absolute32_, first_place_, static_cast<std::uint32_t>(delta));
  add_at_each<std::uint32_t>(image, inverse32_, first_place_, static_cast<std::uint32_t>(-delta));
  add_at_each<std::uint64_t>(image, absolute64_, first_place_, delta);
}

}  // namespace vireo
