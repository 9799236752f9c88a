// SPDX-License-Identifier: Apache-2.0
// What an overlay lies over: an image, or an overlay that was frozen and what that lies over. All
// of it is only read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "devices/block/disk_file.h"
#include "devices/block/overlay_file.h"
#include "src/base/error.h"

namespace vireo {

struct OverlayBacking {
  std::vector<OverlayFile> overlays;  ///< the newest first
  DiskFile image;

  /// Bytes in one piece.
  struct Place {
    const DiskFile* file = nullptr;  ///< nullptr: zeros
    std::uint64_t offset = 0;        ///< in the file
    std::uint64_t length = 0;
  };
  /// Where the byte at `offset` of the disk is, and so many of the `length` from there on as are
  /// with it.
  Place find(std::uint64_t offset, std::uint64_t length) const;
  /// What the disk has from `offset` on; zeros behind its end. Blocking.
  Result<> read(std::span<std::byte> to, std::uint64_t offset) const;

  /// Bytes of the disk that it is.
  std::uint64_t size() const;
  /// The one that an overlay lies on.
  const DiskFile& top() const { return overlays.empty() ? image : overlays.front().file; }
};

/// Opens what an overlay shall lie over, and locks it for others to read too: `path` is an image or
/// `is_overlay`, and what that lies over is where its header says. An image that only looks like an
/// overlay is never taken for one: a guest may have written it. Errors begin with a path.
Result<OverlayBacking> open_backing(const std::string& path, bool is_overlay);

/// What an overlay over it has to know.
Result<OverlayBase> overlay_base_of(const std::string& path, const OverlayBacking& backing);

}  // namespace vireo
