// SPDX-License-Identifier: Apache-2.0
// XXH3 with 64 bits (xxhash's specification): whether bytes are those that were written. It finds
// damage, not malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vireo {

std::uint64_t checksum(std::span<const std::byte> bytes);

}  // namespace vireo
