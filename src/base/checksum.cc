// SPDX-License-Identifier: Apache-2.0
#include "src/base/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace vireo {

std::uint64_t checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace vireo
