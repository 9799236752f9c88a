// SPDX-License-Identifier: Apache-2.0
#include "devices/block/raw_disk.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <linux/falloc.h>

namespace vireo {

namespace {

/// Steps of kWriteZeroes.
enum : unsigned { kByFallocate, kByWrites };

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
      if (flush_failed_.load(std::memory_order_relaxed)) {
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
  }
}

void RawDisk::proceed(DiskOp& op, Ring& ring, int errnum) {
  if (op.kind == DiskOp::Kind::kFlush && errnum != 0) {
    flush_failed_.store(true, std::memory_order_relaxed);
  }
  if (errnum == EOPNOTSUPP && op.kind == DiskOp::Kind::kDiscard) {
    errnum = 0;  // a hint, which this file system has no use for
  }
  if (op.kind == DiskOp::Kind::kWriteZeroes && op.step == kByFallocate && errnum == EOPNOTSUPP) {
    op.step = kByWrites;
    write_zeros(op, ring);
  } else if (op.step == kByWrites && errnum == 0 && op.position < op.length) {
    write_zeros(op, ring);
  } else {
    op.finish(errnum);
  }
}

void RawDisk::write_zeros(DiskOp& op, Ring& ring) {
  const std::uint64_t count = std::min(op.length - op.position, kZerosBytes);
  const std::uint64_t at = op.offset + op.position;
  op.position += count;
  op.write_zeros(ring, file_, at, count);
}

}  // namespace vireo
