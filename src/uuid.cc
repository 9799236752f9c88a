// SPDX-License-Identifier: Apache-2.0
#include "src/uuid.h"

#include <cerrno>

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
