// SPDX-License-Identifier: Apache-2.0
#include "src/base/environment.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace vireo {

std::optional<std::uint64_t> environment_number(const char* name) {
  const char* const value = std::getenv(name);
  const std::string_view text = value == nullptr ? "" : value;
  const char* const end = text.data() + text.size();
  std::uint64_t number = 0;
  const auto [stopped, error] = std::from_chars(text.data(), end, number);
  return error == std::errc() && stopped == end ? std::optional(number) : std::nullopt;
}

}  // namespace vireo
