// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot/field_reader.h"

#include <algorithm>

#include <fmt/core.h>

namespace vireo {

const std::string& FieldReader::problem() {
  if (problem_.empty() && !rest_.empty()) {
    problem_ = fmt::format("has {} bytes too many", rest_.size());
  }
  return problem_;
}

void FieldReader::take(std::span<std::byte> bytes) {
  if (problem_.empty() && bytes.size() > rest_.size()) {
    problem_ = "ends too early";
  }
  if (!problem_.empty()) {
    std::ranges::fill(bytes, std::byte{0});
    return;
  }
  std::ranges::copy(rest_.first(bytes.size()), bytes.begin());
  rest_ = rest_.subspan(bytes.size());
}

std::size_t FieldReader::take_count(std::size_t most) {
  std::uint32_t count = 0;
  field(count);
  if (count > most) {
    problem_ = fmt::format("has a list of {} entries, and may have {}", count, most);
    return 0;
  }
  // Each has a byte or more: what is not there takes no memory either.
  if (count > rest_.size()) {
    problem_ = "ends too early";
    return 0;
  }
  return count;
}

void FieldReader::field(bool& value) {
  std::uint8_t number = 0;
  field(number);
  if (number > 1) {
    problem_ = fmt::format("has {} where 0 or 1 stands", number);
  }
  value = number == 1;
}

}  // namespace vireo
