// SPDX-License-Identifier: Apache-2.0
// Guest memory in a file: written page by page, and mapped or read back.
//
// Writing goes by rounds, so that most of it can be done while the guest runs. A round takes a set
// of pages, which are those that changed since they were last taken; the last round is taken while
// nothing changes any. Each round has two parts, the parts have pieces, and several threads may do
// pieces of one part at the same time:
//
//   MemoryImageWriter image(memory, fd, offset);
//   image.begin_round(pages);
//   … image.examine(piece) for each of image.pieces()       // zero or not
//   image.place_pages();                                    // one thread
//   … image.write(piece) for each of image.pieces()
//   …
//   image.page_table(), image.checksums()
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/memory/guest_memory.h"
#include "src/memory/memory_layer.h"
#include "src/memory/page_set.h"
#include "src/memory/page_table.h"

namespace vireo {

class MemoryImageWriter {
 public:
  /// The image begins at `offset` of `fd`, a file that reads as zeros from there on. Pages that no
  /// round takes are `untaken`. `memory` and `fd` outlive it.
  static Result<MemoryImageWriter> create(const GuestMemory& memory, int fd, std::uint64_t offset,
                                          PageKind untaken);

  /// The pages of this round, which has pieces from 0 on. `pages` outlives the round.
  void begin_round(const PageSet& pages) { pages_ = &pages; }
  std::size_t pieces() const { return pieces_.size(); }

  /// First part: which pages are zero. Any thread, each piece once.
  void examine(std::size_t piece);
  /// Gives those places that need one. When all are examined.
  void place_pages();
  /// Second part: writes the pages. Any thread, each piece once. Errors: kSystem.
  Result<> write(std::size_t piece);

  std::vector<PageRun> page_table() const;
  /// One for each place of the image: a data page's, else 0.
  std::span<const std::uint64_t> checksums() const { return checksums_.first(places_); }
  /// Places for pages so far; the image's size in the file is as many pages.
  std::uint64_t places() const { return places_; }

 private:
  /// What one thread does at a time: pages within one region.
  struct Piece {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    const std::byte* host = nullptr;  // of the first
  };

  MemoryImageWriter(int fd, std::uint64_t offset, PageKind untaken)
      : fd_(fd), offset_(offset), untaken_(untaken) {}

  bool has_place(std::uint64_t page) const { return positions_[page] != 0; }
  std::uint64_t place_of(std::uint64_t page) const { return positions_[page] - 1; }
  void give_place(std::uint64_t page);
  Result<> write_run(const Piece& piece, std::uint64_t first, std::uint64_t count);

  int fd_;
  std::uint64_t offset_;
  PageKind untaken_;
  std::vector<Piece> pieces_;
  const PageSet* pages_ = nullptr;
  std::uint64_t places_ = 0;
  // By page: its kind as it was taken, and its place plus 1 (0: none). By place: the checksum. In
  // mappings, so that what is never touched costs nothing.
  Mapping kinds_memory_;
  Mapping positions_memory_;
  Mapping checksums_memory_;
  std::span<std::uint8_t> kinds_;  // of PageKind; 0: untaken
  std::span<std::uint32_t> positions_;
  std::span<std::uint64_t> checksums_;
};

/// Puts an image's pages under `memory`, which is new: data is mapped privately and read when it is
/// touched, so `fd` stays as it is; the rest is zeros. `runs` have no absent page.
Result<> map_memory_image(GuestMemory& memory, int fd, std::uint64_t offset,
                          std::span<const PageRun> runs);

/// Reads an image into `memory`, which is new, on all processors. Errors: kBadInput where a page's
/// checksum is another one than that of its place.
/// In huge pages where it is dense.
Result<> read_memory_image(GuestMemory& memory, const MemoryLayer& layer);

inline constexpr std::uint64_t kHugePage = std::uint64_t{2} << 20;
/// Runs of aligned blocks of 2 MiB that are at least half data: worth a huge page each.
std::vector<std::span<std::byte>> dense_blocks(const GuestMemory& memory,
                                               std::span<const LayerPiece> pieces);

}  // namespace vireo
