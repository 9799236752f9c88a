// SPDX-License-Identifier: Apache-2.0
#include "devices/block/raw_disk.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <linux/falloc.h>

#include "devices/block/overlay_backing.h"

namespace vireo {

namespace {

/// Steps of kWriteZeroes, and of kGrow.
enum : unsigned { kByFallocate, kByWrites };
enum : unsigned { kMakingRoom, kSyncing };

/// Zeros that are written at a time.
constexpr std::uint64_t kZerosBytes = std::uint64_t{4} << 20;

}  // namespace

void RawDisk::begin(DiskOp& op, Ring& ring) {
  switch (op.kind) {
    case DiskOp::Kind::kRead:
    case DiskOp::Kind::kWrite:
      op.transfer(ring, file_, op.offset, 0, op.length);
      return;
    case DiskOp::Kind::kFlush:
      if (flush_failed()) {
        op.finish(EIO);
      } else {
        op.fdatasync(ring, file_);
      }
      return;
    case DiskOp::Kind::kDiscard:
      op.fallocate(ring, file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, op.offset, op.length);
      return;
    case DiskOp::Kind::kWriteZeroes:
      op.fallocate(ring, file_,
                   FALLOC_FL_KEEP_SIZE | (op.unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
                   op.offset, op.length);
      return;
    case DiskOp::Kind::kGrow:
      // One block at its end; what is before it takes no room.
      op.write_zeros(ring, file_, op.length - file_.limits.block_size, file_.limits.block_size);
      return;
  }
}

void RawDisk::proceed(DiskOp& op, Ring& ring, int errnum) {
  switch (op.kind) {
    case DiskOp::Kind::kFlush:
      if (errnum != 0) {
        set_flush_failed();
      }
      break;
    case DiskOp::Kind::kDiscard:
      if (errnum == EOPNOTSUPP) {
        errnum = 0;  // a hint, which this file system has no use for
      }
      break;
    case DiskOp::Kind::kWriteZeroes:
      if (op.step == kByFallocate && errnum == EOPNOTSUPP) {
        op.step = kByWrites;
        errnum = 0;
      }
      if (op.step == kByWrites && errnum == 0 && op.position < op.length) {
        write_zeros(op, ring);
        return;
      }
      break;
    case DiskOp::Kind::kGrow:
      if (errnum == 0 && op.step == kMakingRoom) {
        op.step = kSyncing;
        op.fdatasync(ring, file_);
        return;
      }
      file_.size = errnum == 0 ? op.length : file_.size;
      break;
    default:
      break;
  }
  op.finish(errnum);
}

OverlayBacking RawDisk::freeze() {
  return {.overlays = {}, .image = std::move(file_)};
}

Result<> RawDisk::check_growth(std::uint64_t /*bytes*/) const {
  if (file_.block_device) {
    return fail(ErrorCode::kConfig,
                "a block device has the size that it has; grow it on the host, and leave size out");
  }
  return {};
}

Result<> RawDisk::measure() {
  TRY_ASSIGN(file_.size, disk_file_size(file_));
  return {};
}

void RawDisk::write_zeros(DiskOp& op, Ring& ring) {
  const std::uint64_t count = std::min(op.length - op.position, kZerosBytes);
  const std::uint64_t at = op.offset + op.position;
  op.position += count;
  op.write_zeros(ring, file_, at, count);
}

}  // namespace vireo
