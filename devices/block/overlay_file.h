// SPDX-License-Identifier: Apache-2.0
// The file of an overlay: what a guest has written, over a base that stays as it is.
//
//     0        header, in two slots of 4 KiB: the valid one with the higher sequence counts
//     8 KiB    the map: a bit for each block of 4 KiB (devices/block/block_map.h)
//     …        the data: block n at data_offset + n * 4096, or a hole
//
// All numbers are little-endian. The file is sparse; a block that the map has not is read from the
// base, unless the data began as a reflink of the base (cloned), of which the map then tells what
// was written and flushed. A bit is written after its block is durable, so whatever is cut short
// leaves a block as it was or as it is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "devices/block/block_map.h"
#include "devices/block/disk_file.h"
#include "src/base/error.h"

namespace vireo {

inline constexpr std::uint64_t kOverlayBlock = 4096;

/// The header, checked: every number is one that the rest can rely on.
struct OverlayHeader {
  std::uint64_t sequence = 0;
  std::uint64_t size = 0;  ///< of the disk
  std::uint64_t map_offset = 0;
  std::uint64_t map_size = 0;  ///< room for blocks that the disk may grow to have, too
  std::uint64_t data_offset = 0;
  bool cloned = false;
  std::uint64_t base_size = 0;
  std::int64_t base_mtime_ns = 0;  ///< since the epoch
  bool base_is_overlay = false;    ///< a frozen one; such a header has format version 2
  std::string base_path;  ///< as it was given; for people, and where the base is an overlay
};

/// Blocks of a disk of `size` bytes; the last may be short.
inline std::uint64_t overlay_blocks(std::uint64_t size) {
  return (size + kOverlayBlock - 1) / kOverlayBlock;
}

using OverlayHeaderPage = std::array<std::byte, 4096>;
/// Where in the file a header goes: the first has the odd ones.
inline std::uint64_t overlay_header_offset(const OverlayHeader& header) {
  return (1 - header.sequence % 2) * sizeof(OverlayHeaderPage);
}
OverlayHeaderPage encode_overlay_header(const OverlayHeader& header);
/// Errors: kBadInput, with what is wrong. For any bytes.
Result<OverlayHeader> decode_overlay_header(const OverlayHeaderPage& page);

struct OverlayFile {
  DiskFile file;
  OverlayHeader header;
  BlockMap map;
};

/// What a base is known by.
struct OverlayBase {
  std::string path;
  std::uint64_t size = 0;  ///< of the disk that it is
  std::int64_t mtime_ns = 0;
  bool is_overlay = false;
};
/// So that a base is found again from any directory; `path` itself where there is nothing.
std::string absolute_path(const std::string& path);
Result<OverlayBase> overlay_base_of(const std::string& path, const DiskFile& base);

/// Makes an overlay of nothing at `path`, where there is no file. What another process makes there
/// first stays: false. Where the file system has reflinks, and the base is on it, the data is one.
Result<bool> make_overlay(const std::string& path, const OverlayBase& base,
                          const DiskFile& base_file);
/// Begins one of nothing in an empty file, which it locks, and without a reflink. Its header is
/// still to be written.
Result<OverlayFile> begin_overlay(UniqueFd fd, const OverlayBase& base);

/// Opens and locks an overlay, with its map. Errors: kBadInput where it is none.
Result<OverlayFile> open_overlay(const std::string& path, bool writable);

/// kBadInput where `base` cannot be what the overlay was made over.
Result<> check_overlay_base(const OverlayHeader& header, const OverlayBase& base);

/// Writes the header anew, into the slot that does not count, …
Result<> write_overlay_header(OverlayFile& overlay);
/// … and durably.
Result<> update_overlay_header(OverlayFile& overlay);

}  // namespace vireo
