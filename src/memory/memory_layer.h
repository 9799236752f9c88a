// SPDX-License-Identifier: Apache-2.0
// A memory image in a file, plain or compressed, and its pages as they are read and checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/memory/frame_table.h"
#include "src/memory/page_table.h"

struct ZSTD_DCtx_s;

namespace vireo {

/// An image in a file, as its tables say. May be anybody's: that a page is another one than its
/// checksum says is found when it is read.
struct MemoryLayer {
  std::string path = {};  ///< where errors shall name the file
  int file = -1;
  std::uint64_t offset = 0;  ///< where it begins
  std::vector<PageRun> runs;
  std::vector<std::uint64_t> checksums;  ///< by place
  std::optional<FrameTable> frames;      ///< of a compressed one
};

/// Pages of data that go on in the file as they do in memory.
struct LayerPiece {
  std::uint64_t page = 0;
  std::uint64_t place = 0;
  std::uint64_t count = 0;
};
/// All pages of data, in the order of pages, in pieces that one read brings: within one frame, or
/// so many pages where there are none.
std::vector<LayerPiece> pieces_of(const MemoryLayer& layer, std::uint64_t plain = 256);

/// Reads pages of a layer, which outlives it. One thread's.
class LayerReader {
 public:
  explicit LayerReader(const MemoryLayer& layer);

  /// Those that have places from `place` on, as many as `bytes` has room for. Errors: kBadInput
  /// where one is another one than was written, or kSystem.
  Result<> read(std::uint64_t place, std::span<std::byte> bytes);

 private:
  struct FreeContext {
    void operator()(ZSTD_DCtx_s* context) const;
  };

  Result<> read_checked(std::uint64_t place, std::span<std::byte> bytes);
  Result<> read_frames(std::uint64_t place, std::span<std::byte> bytes);
  Result<> unpack(std::uint64_t frame, std::span<std::byte> bytes);

  const MemoryLayer* layer_;
  std::unique_ptr<ZSTD_DCtx_s, FreeContext> context_;  // of a compressed layer
  std::vector<std::byte> packed_;
  std::vector<std::byte> pages_;  // of the frame that was unpacked last
  std::optional<std::uint64_t> frame_;
};

/// What a thread does with a piece of work, by its number.
using PieceWork = std::function<Result<>(std::size_t)>;
/// Does `pieces` pieces of work on all processors, this thread being one: each thread makes itself
/// what works. Begins with the first pieces; ends with all, or the first error.
Result<> in_parallel(std::size_t pieces, const std::function<PieceWork()>& make);

}  // namespace vireo
