// SPDX-License-Identifier: Apache-2.0
// UUIDs as text (RFC 4122 §3) and new ones.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "src/base/error.h"

namespace vireo {

using Uuid = std::array<std::uint8_t, 16>;

std::string uuid_text(const Uuid& uuid);
/// Of that text; nothing where it is none.
std::optional<Uuid> parse_uuid(std::string_view text);
/// Of version 4 (§4.4).
Result<Uuid> random_uuid();

}  // namespace vireo
