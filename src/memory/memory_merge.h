// SPDX-License-Identifier: Apache-2.0
// Memory images one over the other, without a machine: whether one is whole, and several as one.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "src/base/error.h"
#include "src/memory/page_table.h"

namespace vireo {

/// An image in a file, as its tables say.
struct MemoryLayer {
  int file = -1;
  std::uint64_t offset = 0;
  std::span<const PageRun> runs;
  std::vector<std::uint64_t> checksums;  ///< by place
};

/// Is called with pages that are done, for who shows how far it is.
using PagesDone = std::function<void(std::uint64_t)>;

/// Whether each page of data is what its checksum says. Errors: kBadInput.
Result<> verify_memory(const MemoryLayer& layer, const PagesDone& done);

/// What comes of layers: each page as the last has it that has it.
struct MergedMemory {
  struct Source {
    std::uint32_t layer = 0;
    std::uint64_t place = 0;
  };
  std::vector<PageRun> runs;
  std::vector<Source> sources;  ///< of each page of data, in the order of pages
  std::uint64_t places = 0;
};
/// Of layers that cover `pages` pages, the first of which has none absent.
MergedMemory plan_merge(std::span<const MemoryLayer> layers, std::uint64_t pages);
/// Writes it from `offset` of `file` on, an empty one; the checksums, by place. What is read is
/// checked: kBadInput.
Result<std::vector<std::uint64_t>> write_merged(const MergedMemory& merged,
                                                std::span<const MemoryLayer> layers, int file,
                                                std::uint64_t offset, const PagesDone& done);

}  // namespace vireo
