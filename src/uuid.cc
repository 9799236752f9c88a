// SPDX-License-Identifier: Apache-2.0
#include "src/uuid.h"

#include <cerrno>
#include <charconv>

#include <sys/random.h>

#include <fmt/core.h>

namespace vireo {

std::string uuid_text(const Uuid& uuid) {
  std::string text;
  for (std::size_t i = 0; i < uuid.size(); ++i) {
    text += i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "";
    text += fmt::format("{:02x}", uuid.at(i));
  }
  return text;
}

std::optional<Uuid> parse_uuid(std::string_view text) {
  Uuid uuid = {};
  std::size_t digits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool dash_place = i == 8 || i == 13 || i == 18 || i == 23;
    unsigned digit = 0;
    const bool is_digit =
        std::from_chars(text.data() + i, text.data() + i + 1, digit, 16).ec == std::errc();
    if (text.size() != 36 || (dash_place ? text[i] != '-' : !is_digit)) {
      return std::nullopt;
    }
    if (!dash_place) {
      std::uint8_t& byte = uuid.at(digits / 2);
      byte = static_cast<std::uint8_t>(static_cast<unsigned>(byte << 4) | digit);
      ++digits;
    }
  }
  return digits == 32 ? std::optional(uuid) : std::nullopt;
}

Result<Uuid> random_uuid() {
  Uuid uuid = {};
  if (::getrandom(uuid.data(), uuid.size(), 0) != static_cast<ssize_t>(uuid.size())) {
    return fail_errno(errno, "getrandom");
  }
  uuid[6] = static_cast<std::uint8_t>((uuid[6] & 0x0f) | 0x40);
  uuid[8] = static_cast<std::uint8_t>((uuid[8] & 0x3f) | 0x80);
  return uuid;
}

}  // namespace vireo
