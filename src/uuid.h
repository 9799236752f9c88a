// SPDX-License-Identifier: Apache-2.0
// UUIDs as text (RFC 4122 §3) and new ones.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "src/base/error.h"

namespace vireo {

using Uuid = std::array<std::uint8_t, 16>;

std::string uuid_text(const Uuid& uuid);
/// Of version 4 (§4.4).
Result<Uuid> random_uuid();

}  // namespace vireo
