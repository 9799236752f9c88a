// SPDX-License-Identifier: Apache-2.0
// Which pages of this process are there, as /proc/self/pagemap tells
// (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "src/memory/page_set.h"

namespace vireo {

enum class PresentPages : std::uint8_t {
  kAll,      ///< that are mapped or swapped out
  kPrivate,  ///< … and are no file's (any more)
};

/// Adds to `pages`, counted from `first`, those of `host` that are there. The kernel finds them
/// where it can, else each is looked at. False where `pagemap` does not tell. Any thread.
bool add_present(int pagemap, std::span<const std::byte> host, PresentPages which,
                 std::uint64_t first, PageSet& pages);

}  // namespace vireo
