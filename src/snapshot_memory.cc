// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot_memory.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

namespace vireo {

Result<std::vector<PageRun>> pages_of(const SnapshotFile& snapshot) {
  TRY_ASSIGN(
      std::vector<PageRun> runs,
      decode_page_table(snapshot.page_table(), snapshot.facts().pages, snapshot.memory().pages));
  if (!snapshot.facts().diff &&
      std::ranges::find(runs, PageKind::kAbsent, &PageRun::kind) != runs.end()) {
    return fail(ErrorCode::kBadInput, "page table: has absent pages, and is no diff");
  }
  return runs;
}

Result<MemoryLayer> layer_of(const SnapshotFile& snapshot, int fd) {
  static_assert(std::endian::native == std::endian::little);
  const MemoryPlace& place = snapshot.memory();
  MemoryLayer layer = {.file = fd, .offset = place.offset};
  TRY_ASSIGN(layer.runs, pages_of(snapshot));
  TRY_ASSIGN(const std::vector<std::byte> bytes, snapshot.read_page_checksums(fd));
  if (bytes.size() != place.pages * sizeof(std::uint64_t)) {
    return fail(ErrorCode::kBadInput, "page checksums: are not as many as places for pages");
  }
  layer.checksums.resize(place.pages);
  std::ranges::copy(bytes, std::as_writable_bytes(std::span(layer.checksums)).begin());
  if (snapshot.facts().compressed) {
    TRY_ASSIGN(const std::vector<std::byte> frames, snapshot.read_frame_table(fd));
    TRY_ASSIGN(layer.frames, decode_frame_table(frames, place.pages, place.size));
  }
  return layer;
}

}  // namespace vireo
