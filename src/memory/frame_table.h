// SPDX-License-Identifier: Apache-2.0
// Where the frames of a compressed memory image are: each has the same number of places, in their
// order, and is compressed by itself, so that any page can be had without the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/error.h"

namespace vireo {

struct FrameTable {
  struct Frame {
    std::uint64_t offset = 0;  ///< from the image's beginning
    std::uint64_t size = 0;
    std::uint64_t checksum = 0;  ///< of these bytes
    bool operator==(const Frame&) const = default;
  };
  /// Places of each frame; the last one has what is left.
  std::uint32_t places = 0;
  std::vector<Frame> frames;
  bool operator==(const FrameTable&) const = default;
};

/// Most places that a frame may have: it is in memory as a whole, and unpacked once for each of its
/// pages where a file has these in an order of its own.
inline constexpr std::uint32_t kFramePlacesMax = 64;
/// How many a frame has that we make. Larger ones would be smaller in the file by little, and the
/// first touch of a page waits for all of its frame.
inline constexpr std::uint32_t kFramePlaces = 32;

/// As it is in a file (src/snapshot/FORMAT.md, frame table); its size, before it is known, where
/// frames have kFramePlaces.
std::uint64_t frame_table_size(std::uint64_t places);
std::vector<std::byte> encode_frame_table(const FrameTable& table);
/// Of a file's bytes, which may be anybody's: frames for exactly `places` places, each within
/// `size` bytes. Errors: kBadInput.
Result<FrameTable> decode_frame_table(std::span<const std::byte> bytes, std::uint64_t places,
                                      std::uint64_t size);

}  // namespace vireo
