// SPDX-License-Identifier: Apache-2.0
#include "devices/block/overlay_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <linux/falloc.h>

#include <fmt/core.h>

namespace vireo {

namespace {

/// Where an operation is.
enum : unsigned {
  kBegun,
  kReadingBase,  // of a block that is to be written in part
  kCopying,      // that block into the overlay
  kWriting,
  kZeroingByFallocate,
  kZeroingByWrites,
  kSyncingData,
  kWritingMap,
  kSyncingMap,
  kMakingRoom,
  kWritingHeader,
  kSyncingHeader,
};

/// Zeros that are written at a time.
constexpr std::uint64_t kZerosBytes = std::uint64_t{4} << 20;
/// What sizes of disks are multiples of.
constexpr std::uint64_t kGrainBytes = 512;

std::uint64_t block_of(std::uint64_t offset) {
  return offset / kOverlayBlock;
}

std::uint64_t last_block_of(const DiskOp& op) {
  return block_of(op.offset + op.length - 1);
}

bool share_a_block(const DiskOp& a, const DiskOp& b) {
  return block_of(a.offset) <= last_block_of(b) && block_of(b.offset) <= last_block_of(a);
}

/// `count` bytes of the pieces from `from` on, as zeros.
void clear_pieces(const DiskOp& op, std::uint64_t from, std::uint64_t count) {
  for (const iovec& piece : op.pieces) {
    const std::uint64_t skipped = std::min<std::uint64_t>(from, piece.iov_len);
    from -= skipped;
    const std::uint64_t taken = std::min<std::uint64_t>(count, piece.iov_len - skipped);
    count -= taken;
    if (taken > 0) {
      std::memset(static_cast<std::byte*>(piece.iov_base) + skipped, 0, taken);
    }
  }
}

}  // namespace

void OverlayDisk::begin(DiskOp& op, Ring& ring) {
  switch (op.kind) {
    case DiskOp::Kind::kRead:
      read_on(op, ring);
      return;
    case DiskOp::Kind::kWrite:
    case DiskOp::Kind::kWriteZeroes:
      begin_change(op, ring);
      return;
    case DiskOp::Kind::kDiscard:
      discard_on(op, ring);
      return;
    case DiskOp::Kind::kFlush:
      begin_flush(op, ring);
      return;
    case DiskOp::Kind::kGrow:
      grow_on(op, ring, 0);
      return;
  }
}

void OverlayDisk::proceed(DiskOp& op, Ring& ring, int errnum) {
  switch (op.kind) {
    case DiskOp::Kind::kRead:
      errnum != 0 ? op.finish(errnum) : read_on(op, ring);
      return;
    case DiskOp::Kind::kWrite:
    case DiskOp::Kind::kWriteZeroes:
      after_change(op, ring, errnum);
      return;
    case DiskOp::Kind::kDiscard:
      errnum != 0 && errnum != EOPNOTSUPP ? op.finish(errnum) : discard_on(op, ring);
      return;
    case DiskOp::Kind::kFlush:
      flush_on(op, ring, errnum);
      return;
    case DiskOp::Kind::kGrow:
      grow_on(op, ring, errnum);
      return;
  }
}

// Read: one run of blocks after the other
// -------------------------------------------------------------

void OverlayDisk::read_on(DiskOp& op, Ring& ring) {
  while (op.position < op.length) {
    const std::uint64_t from = op.position;
    const std::uint64_t at = op.offset + from;
    BlockMap::Run run = {.present = true, .count = last_block_of(op) - block_of(at) + 1};
    if (!overlay_.header.cloned) {
      run = overlay_.map.run(block_of(at), run.count);
    }
    const std::uint64_t end =
        std::min(op.offset + op.length, (block_of(at) + run.count) * kOverlayBlock);
    if (run.present) {
      op.position += end - at;
      op.transfer(ring, overlay_.file, in_file(at), from, end - at);
      return;
    }
    const OverlayBacking::Place place = backing_.find(at, end - at);
    op.position += place.length;
    if (place.file != nullptr) {
      op.transfer(ring, *place.file, place.offset, from, place.length);
      return;
    }
    // The disk was grown beyond its base.
    clear_pieces(op, from, place.length);
  }
  op.finish(0);
}

// Write and write-zeroes
// -------------------------------------------------------------------------------

bool OverlayDisk::all_present(const DiskOp& op) const {
  const std::uint64_t count = last_block_of(op) - block_of(op.offset) + 1;
  const BlockMap::Run run = overlay_.map.run(block_of(op.offset), count);
  return run.present && run.count == count;
}

/// Whether a change that begins or ends at `offset` leaves a part of a block as it was.
bool OverlayDisk::is_cut(std::uint64_t offset) const {
  return offset % kOverlayBlock != 0 && offset != size();
}

void OverlayDisk::begin_change(DiskOp& op, Ring& ring) {
  if (!all_present(op)) {
    if (std::ranges::any_of(changing_,
                            [&op](DiskOp* other) { return share_a_block(op, *other); })) {
      waiting_.push_back(&op);
      return;
    }
    changing_.push_back(&op);
  }
  change(op, ring);
}

void OverlayDisk::change(DiskOp& op, Ring& ring) {
  if (copy_first(op, ring)) {
    return;
  }
  if (op.kind == DiskOp::Kind::kWrite) {
    op.step = kWriting;
    op.transfer(ring, overlay_.file, in_file(op.offset), 0, op.length);
  } else {
    op.step = kZeroingByFallocate;
    op.fallocate(ring, overlay_.file,
                 FALLOC_FL_KEEP_SIZE | (op.unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
                 in_file(op.offset), op.length);
  }
}

/// Begins to bring a block into the overlay that will be changed in part; false where there is
/// none.
bool OverlayDisk::copy_first(DiskOp& op, Ring& ring) {
  if (overlay_.header.cloned) {
    return false;
  }
  const std::uint64_t end = op.offset + op.length;
  std::uint64_t block = 0;
  if (is_cut(op.offset) && !overlay_.map.present(block_of(op.offset))) {
    block = block_of(op.offset);
  } else if (is_cut(end) && !overlay_.map.present(last_block_of(op))) {
    block = last_block_of(op);
  } else {
    return false;
  }
  const std::uint64_t at = block * kOverlayBlock;
  op.position = block;
  op.scratch.assign(std::min(kOverlayBlock, size() - at), std::byte{0});
  // Of one block; what is behind it, where that is less, are zeros.
  const OverlayBacking::Place place = backing_.find(at, op.scratch.size());
  if (place.file != nullptr) {
    op.step = kReadingBase;
    op.read(ring, *place.file, place.offset, std::span(op.scratch).first(place.length));
  } else {
    after_base_read(op, ring);
  }
  return true;
}

void OverlayDisk::after_base_read(DiskOp& op, Ring& ring) {
  op.step = kCopying;
  op.write(ring, overlay_.file, in_file(op.position * kOverlayBlock), op.scratch);
}

void OverlayDisk::after_change(DiskOp& op, Ring& ring, int errnum) {
  if (errnum == EOPNOTSUPP && op.step == kZeroingByFallocate) {
    op.step = kZeroingByWrites;
    op.position = 0;
    zero_on(op, ring);
    return;
  }
  if (errnum != 0) {
    end_change(op, ring, errnum);
    return;
  }
  switch (op.step) {
    case kReadingBase:
      after_base_read(op, ring);
      return;
    case kCopying:
      overlay_.map.set(op.position, 1);
      change(op, ring);
      return;
    case kZeroingByWrites:
      if (op.position < op.length) {
        zero_on(op, ring);
        return;
      }
      break;
    default:
      break;
  }
  overlay_.map.set(block_of(op.offset), last_block_of(op) - block_of(op.offset) + 1);
  end_change(op, ring, 0);
}

void OverlayDisk::zero_on(DiskOp& op, Ring& ring) {
  const std::uint64_t at = op.offset + op.position;
  const std::uint64_t count = std::min(op.length - op.position, kZerosBytes);
  op.position += count;
  op.write_zeros(ring, overlay_.file, in_file(at), count);
}

void OverlayDisk::end_change(DiskOp& op, Ring& ring, int errnum) {
  const bool was_alone = std::erase(changing_, &op) > 0;
  op.finish(errnum);
  if (was_alone) {
    for (DiskOp* const waiting : std::exchange(waiting_, {})) {
      begin_change(*waiting, ring);
    }
  }
}

// Discard: the whole blocks that are in the overlay; the base keeps its own
// ---------------------------

void OverlayDisk::discard_on(DiskOp& op, Ring& ring) {
  const std::uint64_t first = (op.offset + kOverlayBlock - 1) / kOverlayBlock;
  const std::uint64_t end = (op.offset + op.length) / kOverlayBlock;
  // The position counts blocks here.
  while (first + op.position < end) {
    const std::uint64_t block = first + op.position;
    BlockMap::Run run = {.present = true, .count = end - block};
    if (!overlay_.header.cloned) {
      run = overlay_.map.run(block, run.count);
    }
    op.position += run.count;
    if (run.present) {
      op.fallocate(ring, overlay_.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                   in_file(block * kOverlayBlock), run.count * kOverlayBlock);
      return;
    }
  }
  op.finish(0);
}

// Flush
// ------------------------------------------------------------------------------------------------

void OverlayDisk::begin_flush(DiskOp& op, Ring& ring) {
  if (flush_failed()) {
    op.finish(EIO);
    return;
  }
  if (flushing_ != nullptr) {
    next_flush_.push_back(&op);
    return;
  }
  flushing_ = &op;
  // What has ended by now is what the sync covers; bits of later writes wait for the next one.
  pages_ = overlay_.map.take_changed();
  op.step = kSyncingData;
  op.position = 0;
  op.fdatasync(ring, overlay_.file);
}

void OverlayDisk::flush_on(DiskOp& op, Ring& ring, int errnum) {
  if (errnum != 0 || pages_.empty() || op.step == kSyncingMap) {
    end_flush(op, ring, errnum);
  } else if (op.position < pages_.size()) {
    const BlockMap::Page& page = pages_[op.position++];
    op.step = kWritingMap;
    op.write(ring, overlay_.file, overlay_.header.map_offset + page.number * BlockMap::kPageSize,
             page.bytes);
  } else {
    op.step = kSyncingMap;
    op.fdatasync(ring, overlay_.file);
  }
}

void OverlayDisk::end_flush(DiskOp& op, Ring& ring, int errnum) {
  if (errnum != 0) {
    set_flush_failed();
  }
  flushing_ = nullptr;
  pages_.clear();
  std::vector<DiskOp*> together = std::exchange(flushed_with_, {});
  std::vector<DiskOp*> next = std::exchange(next_flush_, {});
  op.finish(errnum);
  for (DiskOp* const other : together) {
    other->finish(errnum);
  }
  for (DiskOp* const waiting : next) {
    if (flushing_ == nullptr) {
      begin_flush(*waiting, ring);
    } else {
      flushed_with_.push_back(waiting);
    }
  }
}

// The end: it becomes the base of another
// ----------------------------------------------------------------

OverlayBacking OverlayDisk::freeze() {
  CHECK(!wants_flush() && changing_.empty());
  OverlayBacking backing = std::move(backing_);
  backing.overlays.insert(backing.overlays.begin(), std::move(overlay_));
  return backing;
}

// Growth: first the file, then the header that tells of it
// ---------------------------------------------------------

Result<> OverlayDisk::check_growth(std::uint64_t bytes) const {
  if (overlay_blocks(bytes) > overlay_.header.map_size * 8) {
    return fail(ErrorCode::kConfig,
                fmt::format("an overlay has room for no more than {} bytes; a larger one wants a "
                            "larger base",
                            overlay_.header.map_size * 8 * kOverlayBlock));
  }
  return {};
}

void OverlayDisk::grow_on(DiskOp& op, Ring& ring, int errnum) {
  OverlayHeader& header = overlay_.header;
  if (errnum != 0) {
    // A header that may be there or not names a size that the file has.
    op.finish(errnum);
    return;
  }
  switch (op.step) {
    case kBegun:
      op.step = kMakingRoom;
      op.write_zeros(ring, overlay_.file, in_file(op.length) - kGrainBytes, kGrainBytes);
      return;
    case kMakingRoom: {
      OverlayHeader grown = header;
      ++grown.sequence;
      grown.size = op.length;
      const OverlayHeaderPage page = encode_overlay_header(grown);
      op.scratch.assign(page.begin(), page.end());
      op.step = kWritingHeader;
      op.write(ring, overlay_.file, overlay_header_offset(grown), op.scratch);
      return;
    }
    case kWritingHeader:
      op.step = kSyncingHeader;
      op.fdatasync(ring, overlay_.file);
      return;
    default:
      ++header.sequence;
      header.size = op.length;
      overlay_.map.grow(overlay_blocks(op.length));
      op.finish(0);
      return;
  }
}

}  // namespace vireo
