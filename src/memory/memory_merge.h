// SPDX-License-Identifier: Apache-2.0
// Memory images one over the other, without a machine: whether one is whole, and several as one,
// plain or compressed. On all processors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "src/base/error.h"
#include "src/memory/frame_table.h"
#include "src/memory/memory_layer.h"
#include "src/memory/page_table.h"

namespace vireo {

/// Is called with pages that are done, for who shows how far it is; by one thread at a time.
using PagesDone = std::function<void(std::uint64_t)>;

/// Whether each page of data is what its checksum says. Errors name the file; kBadInput.
Result<> verify_memory(const MemoryLayer& layer, const PagesDone& done);

/// What comes of layers: each page as the last has it that has it.
struct MergedMemory {
  struct Source {
    std::size_t layer = 0;
    std::uint64_t place = 0;  ///< there
    std::uint64_t count = 0;
    std::uint64_t merged_place = 0;
  };
  std::vector<PageRun> runs;
  std::vector<Source> sources;  ///< of all pages of data, by merged_place
  std::uint64_t places = 0;
};
/// Which place a page gets.
enum class Places : std::uint8_t {
  kDense,  ///< one behind the other; zero pages have none, but for few between others
  kRaw,    ///< its number, as memory itself has it
};
/// Of layers that cover `pages` pages; those that none has are absent. Its cost is by the number of
/// runs, as the layers may say that they are of any number of pages.
MergedMemory plan_merge(std::span<const MemoryLayer> layers, std::uint64_t pages,
                        Places places = Places::kDense);
/// Writes it from `offset` of `file` on, an empty one; the checksums, by place. What is read is
/// checked: errors name its file; kBadInput.
Result<std::vector<std::uint64_t>> write_merged(const MergedMemory& merged,
                                                std::span<const MemoryLayer> layers, int file,
                                                std::uint64_t offset, const PagesDone& done);

struct CompressedMemory {
  std::vector<std::uint64_t> checksums;  ///< by place
  FrameTable frames;
  std::uint64_t size = 0;  ///< in the file
};
/// The same, compressed.
Result<CompressedMemory> write_compressed(const MergedMemory& merged,
                                          std::span<const MemoryLayer> layers, int file,
                                          std::uint64_t offset, const PagesDone& done);

}  // namespace vireo
