// SPDX-License-Identifier: Apache-2.0
// Which page of guest memory is where in a memory image: runs of pages of one kind, which cover all
// guest memory in the order of its regions. Pages are of 4 KiB, whatever the host's are.
//
// An image has places for pages, counted from 0. A run of data has consecutive places. Between data
// there may be places without a page, which read as zeros: pages that are zero between others keep
// theirs, so that such runs can be mapped in one piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/error.h"

namespace vireo {

inline constexpr std::uint64_t kImagePage = 4096;

enum class PageKind : std::uint8_t {
  kAbsent = 0,  ///< as in the image before this one
  kZero = 1,
  kData = 2,
};

struct PageRun {
  PageKind kind = PageKind::kAbsent;
  std::uint32_t count = 0;     ///< pages, at least 1
  std::uint64_t position = 0;  ///< kData: the first one's place; else 0
  bool operator==(const PageRun&) const = default;
};

/// As they are in a file: 16 bytes each (src/snapshot/FORMAT.md, page table).
std::vector<std::byte> encode_page_table(std::span<const PageRun> runs);

/// Of a file's bytes, which may be anybody's: exactly `pages` pages, whose data has places below
/// `places`, and no more than these. Errors: kBadInput.
Result<std::vector<PageRun>> decode_page_table(std::span<const std::byte> bytes,
                                               std::uint64_t pages, std::uint64_t places);

/// Adds pages behind `runs`, to the last run where they go on with it.
void add_run(std::vector<PageRun>& runs, PageRun run);

}  // namespace vireo
