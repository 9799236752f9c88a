// SPDX-License-Identifier: Apache-2.0
#include "devices/block/overlay_offline.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

namespace vireo {

namespace {

/// What is moved at a time: whole blocks.
constexpr std::uint64_t kChunk = std::uint64_t{1} << 20;

Result<> write_full_at(int fd, std::span<const std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0) {
      return fail_errno(errno, "writing");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

Result<> sync_data(const DiskFile& file) {
  return ::fdatasync(file.fd.get()) < 0 ? Result<>(fail_errno(errno, "fdatasync")) : Result<>();
}

bool is_zero(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

bool punch(const DiskFile& file, std::uint64_t offset, std::uint64_t length) {
  return ::fallocate(file.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(offset), static_cast<off_t>(length)) == 0;
}

/// Zeros take no room where the file system knows holes.
Result<> write_chunk(const DiskFile& file, std::span<const std::byte> bytes, std::uint64_t offset) {
  if (is_zero(bytes) && punch(file, offset, bytes.size())) {
    return {};
  }
  return write_full_at(file.fd.get(), bytes, offset);
}

/// What `base` has at `offset`; behind its end, zeros.
Result<> read_base(const DiskFile& base, std::uint64_t offset, std::span<std::byte> bytes) {
  const std::uint64_t there =
      std::min<std::uint64_t>(bytes.size(), base.size - std::min(base.size, offset));
  std::ranges::fill(bytes.subspan(there), std::byte{0});
  return there > 0 ? read_full_at(base.fd.get(), bytes.first(there), offset) : Result<>();
}

Result<> remember_base(OverlayFile& overlay, const DiskFile& base, const std::string& path) {
  TRY_ASSIGN(const OverlayBase known, overlay_base_of(path, base));
  overlay.header.base_path = known.path;
  overlay.header.base_size = known.size;
  overlay.header.base_mtime_ns = known.mtime_ns;
  return update_overlay_header(overlay);
}

Result<> copy_to_base(const OverlayFile& overlay, const DiskFile& base) {
  const OverlayHeader& header = overlay.header;
  std::vector<std::byte> room(kChunk);
  for (std::uint64_t block = 0; block < overlay.map.blocks();) {
    const BlockMap::Run run = overlay.map.run(block, overlay.map.blocks() - block);
    const std::uint64_t end = std::min((block + run.count) * kOverlayBlock, header.size);
    for (std::uint64_t at = block * kOverlayBlock; run.present && at < end;) {
      const auto bytes = std::span(room).first(std::min(end - at, kChunk));
      TRY(read_full_at(overlay.file.fd.get(), bytes, header.data_offset + at));
      TRY(write_chunk(base, bytes, at));
      at += bytes.size();
    }
    block += run.count;
  }
  return sync_data(base);
}

/// No block is the overlay's any more. The map first: data without a bit is nobody's.
Result<> forget_blocks(OverlayFile& overlay) {
  const OverlayHeader& header = overlay.header;
  if (!punch(overlay.file, header.map_offset, header.map_size)) {
    const std::vector<std::byte> zeros(BlockMap::kPageSize);
    for (std::uint64_t at = 0; at < header.map_size; at += zeros.size()) {
      TRY(write_full_at(overlay.file.fd.get(), zeros, header.map_offset + at));
    }
  }
  TRY(sync_data(overlay.file));
  TRY_ASSIGN(overlay.map, BlockMap::create(overlay.map.blocks(), overlay.map.blocks()));
  if (!header.cloned) {
    punch(overlay.file, header.data_offset, header.size);
  }
  return {};
}

Result<> write_map(OverlayFile& overlay) {
  TRY(sync_data(overlay.file));
  for (const BlockMap::Page& page : overlay.map.take_changed()) {
    TRY(write_full_at(overlay.file.fd.get(), page.bytes,
                      overlay.header.map_offset + page.number * BlockMap::kPageSize));
  }
  return sync_data(overlay.file);
}

/// Takes in the blocks of [at, at + room) that are the base's, and differ between the two.
Result<> take_in(OverlayFile& overlay, std::uint64_t at, std::span<const std::byte> old_bytes,
                 std::span<const std::byte> new_bytes) {
  for (std::uint64_t from = 0; from < old_bytes.size(); from += kOverlayBlock) {
    const std::uint64_t count = std::min<std::uint64_t>(kOverlayBlock, old_bytes.size() - from);
    const std::uint64_t block = (at + from) / kOverlayBlock;
    if (!overlay.map.present(block) &&
        std::memcmp(old_bytes.data() + from, new_bytes.data() + from, count) != 0) {
      TRY(write_full_at(overlay.file.fd.get(), old_bytes.subspan(from, count),
                        overlay.header.data_offset + at + from));
      overlay.map.set(block, 1);
    }
  }
  return {};
}

}  // namespace

Result<> commit_overlay(OverlayFile& overlay, DiskFile& base, const std::string& base_path) {
  if (base.size < overlay.header.size) {
    if (base.block_device ||
        ::ftruncate(base.fd.get(), static_cast<off_t>(overlay.header.size)) < 0) {
      return fail(ErrorCode::kConfig,
                  base_path + ": the disk has grown beyond it, and it does not grow");
    }
    base.size = overlay.header.size;
  }
  TRY(copy_to_base(overlay, base));
  // From here on both have the same, whatever is still to come.
  TRY(remember_base(overlay, base, base_path));
  return forget_blocks(overlay);
}

Result<> rebase_overlay(OverlayFile& overlay, const DiskFile& old_base, const DiskFile& new_base,
                        const std::string& new_base_path) {
  if (!overlay.header.cloned) {
    std::vector<std::byte> old_room(kChunk);
    std::vector<std::byte> new_room(kChunk);
    for (std::uint64_t at = 0; at < overlay.header.size; at += kChunk) {
      const std::uint64_t count = std::min(kChunk, overlay.header.size - at);
      TRY(read_base(old_base, at, std::span(old_room).first(count)));
      TRY(read_base(new_base, at, std::span(new_room).first(count)));
      TRY(take_in(overlay, at, std::span(old_room).first(count), std::span(new_room).first(count)));
    }
    TRY(write_map(overlay));
  }
  return remember_base(overlay, new_base, new_base_path);
}

Result<> repoint_overlay(OverlayFile& overlay, const DiskFile& base, const std::string& base_path) {
  return remember_base(overlay, base, base_path);
}

}  // namespace vireo
