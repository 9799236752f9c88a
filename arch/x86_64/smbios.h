// SPDX-License-Identifier: Apache-2.0
// The SMBIOS tables of a vireo VM.
#pragma once

#include <array>
#include <cstdint>

#include "src/memory/guest_memory.h"

namespace vireo::arch {

/// Writes entry point and structures at layout::kSmbios; `uuid` in RFC 4122 byte order.
void write_smbios_tables(GuestMemory& memory, const std::array<std::uint8_t, 16>& uuid);

}  // namespace vireo::arch
