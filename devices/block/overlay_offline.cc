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

Result<> remember_base(OverlayFile& overlay, const OverlayBase& base) {
  overlay.header.base_path = base.path;
  overlay.header.base_size = base.size;
  overlay.header.base_mtime_ns = base.mtime_ns;
  overlay.header.base_is_overlay = base.is_overlay;
  return update_overlay_header(overlay);
}

/// Calls `found(at, bytes of one, bytes of other)` for each block in which the two differ, as
/// `read_one(at, room)` and `read_other(at, room)` tell them.
Result<> for_each_difference(std::uint64_t size, auto read_one, auto read_other, auto found) {
  std::vector<std::byte> room(kChunk);
  std::vector<std::byte> other_room(kChunk);
  for (std::uint64_t at = 0; at < size; at += kChunk) {
    const auto one = std::span(room).first(std::min(kChunk, size - at));
    const auto other = std::span(other_room).first(one.size());
    TRY(read_one(at, one));
    TRY(read_other(at, other));
    for (std::uint64_t from = 0; from < one.size(); from += kOverlayBlock) {
      const std::uint64_t count = std::min<std::uint64_t>(kOverlayBlock, one.size() - from);
      if (std::memcmp(one.data() + from, other.data() + from, count) != 0) {
        TRY(found(at + from, one.subspan(from, count)));
      }
    }
  }
  return {};
}

/// Takes in the blocks that are the base's, and that the new base has otherwise.
Result<> take_in_differences(OverlayFile& overlay, const OverlayBacking& old_base,
                             const OverlayBacking& new_base) {
  return for_each_difference(
      overlay.header.size,
      [&](std::uint64_t at, std::span<std::byte> room) { return old_base.read(room, at); },
      [&](std::uint64_t at, std::span<std::byte> room) { return new_base.read(room, at); },
      [&](std::uint64_t at, std::span<const std::byte> bytes) -> Result<> {
        if (!overlay.map.present(at / kOverlayBlock)) {
          TRY(write_full_at(overlay.file.fd.get(), bytes, overlay.header.data_offset + at));
          overlay.map.set(at / kOverlayBlock, 1);
        }
        return {};
      });
}

/// Calls `write(at, bytes)` for what the map says that the overlay has.
Result<> for_each_mapped_piece(const OverlayFile& overlay, auto write) {
  const OverlayHeader& header = overlay.header;
  std::vector<std::byte> room(kChunk);
  for (std::uint64_t block = 0; block < overlay.map.blocks();) {
    const BlockMap::Run run = overlay.map.run(block, overlay.map.blocks() - block);
    const std::uint64_t end = std::min((block + run.count) * kOverlayBlock, header.size);
    for (std::uint64_t at = block * kOverlayBlock; run.present && at < end;) {
      const auto bytes = std::span(room).first(std::min(end - at, kChunk));
      TRY(read_full_at(overlay.file.fd.get(), bytes, header.data_offset + at));
      TRY(write(at, bytes));
      at += bytes.size();
    }
    block += run.count;
  }
  return {};
}

/// The map of a clone does not tell all that it has and the base has not: a discard leaves no bit,
/// a write that was cut off before its flush may have changed a block without one, which the guest
/// has read since, and the base may be another one.
Result<> copy_differences(const OverlayFile& overlay, const DiskFile& base) {
  return for_each_difference(
      overlay.header.size,
      [&](std::uint64_t at, std::span<std::byte> room) {
        return read_full_at(overlay.file.fd.get(), room, overlay.header.data_offset + at);
      },
      [&](std::uint64_t at, std::span<std::byte> room) { return read_base(base, at, room); },
      [&](std::uint64_t at, std::span<const std::byte> bytes) {
        return write_chunk(base, bytes, at);
      });
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

}  // namespace

namespace {

Result<> grow(OverlayFile& base, std::uint64_t size) {
  if (overlay_blocks(size) > base.header.map_size * 8 ||
      ::ftruncate(base.file.fd.get(), static_cast<off_t>(base.header.data_offset + size)) < 0) {
    return fail(ErrorCode::kConfig, "the disk has grown beyond it, and it does not grow so far");
  }
  base.header.size = size;
  base.map.grow(overlay_blocks(size));
  return update_overlay_header(base);
}

}  // namespace

Result<> commit_overlay(OverlayFile& overlay, OverlayFile& base, const std::string& base_path) {
  if (base.header.size < overlay.header.size) {
    if (Result<> grown = grow(base, overlay.header.size); !grown) {
      return std::unexpected(std::move(grown).error().context(base_path));
    }
  }
  const auto take_in = [&base](std::uint64_t at, std::span<const std::byte> bytes) -> Result<> {
    TRY(write_full_at(base.file.fd.get(), bytes, base.header.data_offset + at));
    base.map.set(at / kOverlayBlock, overlay_blocks(bytes.size()));
    return {};
  };
  TRY(for_each_mapped_piece(overlay, take_in));
  TRY(write_map(base));
  // From here on both have the same, whatever is still to come.
  TRY_ASSIGN(OverlayBase known, overlay_base_of(base_path, base.file));
  known.size = base.header.size;
  known.is_overlay = true;
  TRY(remember_base(overlay, known));
  return forget_blocks(overlay);
}

Result<> commit_overlay(OverlayFile& overlay, DiskFile& base, const std::string& base_path) {
  if (base.size < overlay.header.size) {
    if (base.block_device ||
        ::ftruncate(base.fd.get(), static_cast<off_t>(overlay.header.size)) < 0) {
      return fail(ErrorCode::kConfig,
                  base_path + ": the disk has grown beyond it, and it does not grow");
    }
    base.size = overlay.header.size;
  }
  TRY(overlay.header.cloned
          ? copy_differences(overlay, base)
          : for_each_mapped_piece(overlay,
                                  [&base](std::uint64_t at, std::span<const std::byte> bytes) {
                                    return write_chunk(base, bytes, at);
                                  }));
  TRY(sync_data(base));
  // From here on both have the same, whatever is still to come.
  TRY_ASSIGN(const OverlayBase known, overlay_base_of(base_path, base));
  TRY(remember_base(overlay, known));
  return forget_blocks(overlay);
}

Result<> rebase_overlay(OverlayFile& overlay, const OverlayBacking& old_base,
                        const OverlayBacking& new_base, const std::string& new_base_path) {
  if (!overlay.header.cloned) {
    TRY(take_in_differences(overlay, old_base, new_base));
    TRY(write_map(overlay));
  }
  return repoint_overlay(overlay, new_base, new_base_path);
}

Result<> repoint_overlay(OverlayFile& overlay, const OverlayBacking& base,
                         const std::string& base_path) {
  TRY_ASSIGN(const OverlayBase known, overlay_base_of(base_path, base));
  return remember_base(overlay, known);
}

}  // namespace vireo
