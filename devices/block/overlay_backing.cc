// SPDX-License-Identifier: Apache-2.0
#include "devices/block/overlay_backing.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>

namespace vireo {

namespace {

/// Each has its file open, and costs each read of what none has a look at its map.
constexpr std::size_t kOverlaysMax = 256;

}  // namespace

OverlayBacking::Place OverlayBacking::find(std::uint64_t offset, std::uint64_t length) const {
  for (const OverlayFile& overlay : overlays) {
    const OverlayHeader& header = overlay.header;
    if (offset >= header.size) {
      return {.length = length};  // the disk was grown later
    }
    length = std::min(length, header.size - offset);
    bool present = header.cloned;
    if (!header.cloned) {
      const std::uint64_t block = offset / kOverlayBlock;
      const BlockMap::Run run = overlay.map.run(block, overlay.map.blocks() - block);
      length = std::min(length, (block + run.count) * kOverlayBlock - offset);
      present = run.present;
    }
    if (present) {
      return {.file = &overlay.file, .offset = header.data_offset + offset, .length = length};
    }
  }
  if (offset >= image.size) {
    return {.length = length};
  }
  return {.file = &image, .offset = offset, .length = std::min(length, image.size - offset)};
}

Result<> OverlayBacking::read(std::span<std::byte> to, std::uint64_t offset) const {
  while (!to.empty()) {
    const Place place = find(offset, to.size());
    const auto part = to.first(place.length);
    if (place.file == nullptr) {
      std::ranges::fill(part, std::byte{0});
    } else {
      TRY(read_full_at(place.file->fd.get(), part, place.offset));
    }
    to = to.subspan(part.size());
    offset += part.size();
  }
  return {};
}

std::uint64_t OverlayBacking::size() const {
  return overlays.empty() ? image.size : overlays.front().header.size;
}

Result<OverlayBacking> open_backing(const std::string& path, bool is_overlay) {
  OverlayBacking backing;
  std::string next = path;
  while (is_overlay) {
    if (backing.overlays.size() == kOverlaysMax) {
      return fail(ErrorCode::kConfig,
                  fmt::format("{}: lies over more than {} overlays; fold some (vireo disk commit, "
                              "vireo disk rebase)",
                              path, kOverlaysMax));
    }
    TRY_ASSIGN(OverlayFile overlay, open_overlay(next, false));
    next = overlay.header.base_path;
    is_overlay = overlay.header.base_is_overlay;
    backing.overlays.push_back(std::move(overlay));
  }
  TRY_ASSIGN(backing.image, open_disk_file(next, {}));
  // Each is what the one above it was made over.
  for (std::size_t i = 0; i < backing.overlays.size(); ++i) {
    const OverlayHeader& header = backing.overlays[i].header;
    const bool last = i + 1 == backing.overlays.size();
    const DiskFile& below = last ? backing.image : backing.overlays[i + 1].file;
    TRY_ASSIGN(OverlayBase base, overlay_base_of(header.base_path, below));
    base.size = last ? base.size : backing.overlays[i + 1].header.size;
    if (Result<> suits = check_overlay_base(header, base); !suits) {
      return std::unexpected(std::move(suits).error().context(path));
    }
  }
  return backing;
}

Result<OverlayBase> overlay_base_of(const std::string& path, const OverlayBacking& backing) {
  TRY_ASSIGN(OverlayBase base, overlay_base_of(path, backing.top()));
  base.size = backing.size();
  base.is_overlay = !backing.overlays.empty();
  return base;
}

}  // namespace vireo
