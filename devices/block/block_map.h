// SPDX-License-Identifier: Apache-2.0
// Which blocks of a disk are in its overlay: one bit for each, as the overlay's file has them.
//
// Bits are only ever set, so a map of which some pages are older than others, or even a page of
// which some sectors are, is a map of some earlier time: for each block the old or the new.
// Owned by an overlay; one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

class BlockMap {
 public:
  static constexpr std::uint64_t kPageSize = 4096;  ///< what is written to the file at a time
  static constexpr std::uint64_t kBlocksOfPage = kPageSize * 8;

  /// Blocks from the first on that are all in the overlay, or all not.
  struct Run {
    bool present = false;
    std::uint64_t count = 0;
  };
  struct Page {
    std::uint64_t number = 0;
    std::vector<std::byte> bytes;
  };

  /// Of `blocks` blocks, none of them present, with room for `most`. Pages that stay so cost no
  /// memory.
  static Result<BlockMap> create(std::uint64_t blocks, std::uint64_t most);
  /// Sets what is set in `size` bytes of `fd` from `offset` on: whole pages.
  Result<> load(int fd, std::uint64_t offset);

  std::uint64_t blocks() const { return blocks_; }
  bool present(std::uint64_t block) const;
  /// The run that begins at `first`, of at most `most` blocks.
  Run run(std::uint64_t first, std::uint64_t most) const;
  std::uint64_t count_present() const;
  void set(std::uint64_t first, std::uint64_t count);
  /// From now on it is of `blocks` blocks, no fewer than before and no more than there is room for.
  void grow(std::uint64_t blocks);

  /// Whether bits were set since take_changed().
  bool changed() const { return !changed_.empty(); }
  /// Copies of the pages in which bits were set since the last call.
  std::vector<Page> take_changed();

 private:
  std::span<std::byte> page(std::uint64_t number) const {
    return bits_.bytes().subspan(number * kPageSize, kPageSize);
  }

  static std::uint64_t pages_of(std::uint64_t blocks) {
    return (blocks + kBlocksOfPage - 1) / kBlocksOfPage;
  }

  std::uint64_t blocks_ = 0;
  Mapping bits_;
  std::vector<std::uint64_t> changed_;  // pages, each once, in no order
};

}  // namespace vireo
