// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot_memory.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include <fcntl.h>

#include <fmt/core.h>

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

Result<MemoryLayer> layer_of(const SnapshotFile& snapshot, int fd, int memory) {
  static_assert(std::endian::native == std::endian::little);
  const MemoryPlace& place = snapshot.memory();
  MemoryLayer layer = {.file = memory, .offset = place.offset};
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

Result<MemoryFile> open_memory_file(const SnapshotFile& snapshot, const std::string& path) {
  MemoryFile memory;
  if (!snapshot.facts().memory_file) {
    return memory;
  }
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(snapshot.sections()));
  TRY_ASSIGN(const MemoryFileName file, reader.take<MemoryFileName>(0));
  // Nothing but what is beside it: the guest can read all of it.
  if (file.name.empty() || file.name.find_first_of(std::string_view("/\0", 2)) != file.name.npos) {
    return bad_section<MemoryFileName>(0, "is no name of a file");
  }
  memory.path = (std::filesystem::path(path).parent_path() / file.name).string();
  TRY_ASSIGN(memory.file, open_file(memory.path, O_RDONLY));
  const Result<std::uint64_t> size = regular_file_size(memory.file.get());
  if (!size) {
    return std::unexpected(Error(size.error()).context(memory.path));
  }
  if (*size != snapshot.memory().size) {
    return fail(ErrorCode::kBadInput, fmt::format("its memory's file {} has {} bytes of {}",
                                                  memory.path, *size, snapshot.memory().size));
  }
  return memory;
}

}  // namespace vireo
