// SPDX-License-Identifier: Apache-2.0
#include "src/base/environment.h"

#include <charconv>
#include <cstdlib>
#include <cstring>

namespace vireo {

std::optional<std::uint64_t> environment_number(const char* name) {
  const char* const text = std::getenv(name);
  if (text == nullptr) {
    return std::nullopt;
  }
  const char* const end = text + std::strlen(text);
  std::uint64_t number = 0;
  const auto [stopped, error] = std::from_chars(text, end, number);
  return error == std::errc() && stopped == end ? std::optional(number) : std::nullopt;
}

}  // namespace vireo
