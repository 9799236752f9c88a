// SPDX-License-Identifier: Apache-2.0
#include "devices/block/disk.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "src/base/log.h"

namespace vireo {

namespace {

/// The kernel takes no more pieces at a time (IOV_MAX).
constexpr std::size_t kPiecesMax = 1024;
/// What goes through a bounce buffer at a time.
constexpr std::size_t kBounceBytes = std::size_t{256} << 10;

/// What is read or written at once: more would keep others waiting.
constexpr std::uint64_t kAtOnceBytes = std::uint64_t{64} << 10;
/// After a read of what was not in the page cache so many are left to the ring.
constexpr std::uint32_t kNotCached = 32;
/// A write that takes this long has waited. None is made at once for so many times as long
/// thereafter, so that a slow disk has a small part of its thread's time.
constexpr std::uint64_t kWaitedNs = 1'000'000;
constexpr std::uint64_t kTimesAsLong = 15;

/// What zeros are written from where there is no other way.
alignas(4096) constinit std::array<std::byte, std::size_t{64} << 10> zeros = {};

iovec piece_of(const std::byte* data, std::size_t size) {
  // NOLINTNEXTLINE(*-pro-type-const-cast): writes only read it
  return {.iov_base = const_cast<std::byte*>(data), .iov_len = size};
}

std::byte* bytes_of(const iovec& piece) {
  return static_cast<std::byte*>(piece.iov_base);
}

}  // namespace

void DiskOp::FreeAligned::operator()(std::byte* memory) const {
  std::free(memory);  // NOLINT(*-no-malloc): of aligned_alloc
}

// The steps
// ------------------------------------------------------------------------------------------

void DiskOp::transfer(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
                      std::uint64_t from, std::uint64_t count) {
  rest_.clear();
  remaining_ = count;
  for (const iovec& piece : pieces) {
    const std::uint64_t skipped = std::min<std::uint64_t>(from, piece.iov_len);
    from -= skipped;
    const std::uint64_t taken = std::min<std::uint64_t>(count, piece.iov_len - skipped);
    count -= taken;
    if (taken > 0) {
      rest_.push_back(piece_of(bytes_of(piece) + skipped, taken));
    }
  }
  CHECK(count == 0);
  guests_ = true;
  begin_transfer(ring, file, kind == Kind::kWrite, file_offset);
}

void DiskOp::read(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
                  std::span<std::byte> to) {
  rest_.assign({piece_of(to.data(), to.size())});
  remaining_ = to.size();
  guests_ = false;
  begin_transfer(ring, file, false, file_offset);
}

void DiskOp::write(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
                   std::span<const std::byte> from) {
  rest_.assign({piece_of(from.data(), from.size())});
  remaining_ = from.size();
  guests_ = false;
  begin_transfer(ring, file, true, file_offset);
}

void DiskOp::write_zeros(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
                         std::uint64_t count) {
  rest_.clear();
  remaining_ = count;
  guests_ = false;
  while (count > 0) {
    const std::uint64_t taken = std::min<std::uint64_t>(count, zeros.size());
    rest_.push_back(piece_of(zeros.data(), taken));
    count -= taken;
  }
  begin_transfer(ring, file, true, file_offset);
}

void DiskOp::fdatasync(Ring& ring, const DiskFile& file) {
  ring_ = &ring;
  transfers_ = false;
  ring.prep_fdatasync(op_, file.fd.get());
}

void DiskOp::fallocate(Ring& ring, const DiskFile& file, int mode, std::uint64_t file_offset,
                       std::uint64_t count) {
  ring_ = &ring;
  transfers_ = false;
  ring.prep_fallocate(op_, file.fd.get(), mode, file_offset, count);
}

void DiskOp::end_step(int errnum) {
  bounce_.reset();
  disk_->proceed(*this, *ring_, errnum);
}

// Moving bytes, by as many operations as that takes
// --------------------------------------------------

void DiskOp::begin_transfer(Ring& ring, const DiskFile& file, bool writes,
                            std::uint64_t file_offset) {
  ring_ = &ring;
  file_ = &file;
  transfers_ = true;
  writes_ = writes;
  file_offset_ = file_offset;
  first_ = 0;
  if (needs_bounce()) {
    // NOLINTNEXTLINE(*-no-malloc): the alignment is known at run time only
    bounce_.reset(static_cast<std::byte*>(std::aligned_alloc(
        std::max<std::size_t>(file.limits.memory_alignment, sizeof(void*)), kBounceBytes)));
    CHECK(bounce_ != nullptr);
  }
  submit();
}

/// Whether the kernel would refuse the memory for direct I/O.
bool DiskOp::needs_bounce() const {
  const std::uint64_t mask = file_->limits.memory_alignment - 1;
  return mask != 0 && std::ranges::any_of(rest_, [mask](const iovec& piece) {
           // NOLINTNEXTLINE(*-reinterpret-cast): the address, not what is there
           return ((reinterpret_cast<std::uintptr_t>(piece.iov_base) | piece.iov_len) & mask) != 0;
         });
}

/// Reads from the page cache by a system call, which costs less than asking the ring for one read;
/// false where the ring has to do it, because that would take time.
bool DiskOp::read_at_once() {
  if (!alone || writes_ || !guests_ || file_->direct || length > kAtOnceBytes) {
    return false;
  }
  // Reactors that count down at once lose a step; it is no more than a guess.
  if (const auto left = disk_->not_cached_.load(std::memory_order_relaxed); left > 0) {
    disk_->not_cached_.store(left - 1, std::memory_order_relaxed);
    return false;
  }
  const std::span<const iovec> todo = std::span(rest_).subspan(first_);
  const ssize_t got =
      ::preadv2(file_->fd.get(), todo.data(), static_cast<int>(std::min(todo.size(), kPiecesMax)),
                static_cast<off_t>(file_offset_), RWF_NOWAIT);
  if (got <= 0) {
    // Whatever it is (a file system that cannot say, an error, an end), the ring tells.
    disk_->not_cached_.store(kNotCached, std::memory_order_relaxed);
    return false;
  }
  on_completion(op_, {.result = static_cast<std::int32_t>(got)});
  return true;
}

/// Writes to the page cache by a system call, on a thread that may wait for it: false where the
/// ring had better do it.
///
/// A buffered write waits for locks and journals, and most file systems (ext4, not XFS and btrfs)
/// cannot say so instead. io_uring gives each such write to a thread of the kernel's, which costs
/// more than the write.
bool DiskOp::write_at_once() {
  if (!writes_ || !guests_ || !ring_->may_wait() || file_->direct || remaining_ > kAtOnceBytes) {
    return false;
  }
  const auto buffered = disk_->buffered_.load(std::memory_order_relaxed);
  const std::uint64_t began_ns = monotonic_ns();
  if (buffered == Disk::Buffered::kBegins ||
      began_ns < disk_->not_before_ns_.load(std::memory_order_relaxed)) {
    return false;
  }
  // The first finds out: what can be begun without waiting is not worth a system call of ours.
  const bool unknown = buffered == Disk::Buffered::kUnknown;
  const std::span<const iovec> todo = std::span(rest_).subspan(first_);
  const ssize_t written =
      ::pwritev2(file_->fd.get(), todo.data(), static_cast<int>(std::min(todo.size(), kPiecesMax)),
                 static_cast<off_t>(file_offset_), unknown ? RWF_NOWAIT : 0);
  const int errnum = written < 0 ? errno : 0;
  if (unknown) {
    if (errnum == EOPNOTSUPP) {
      disk_->buffered_.store(Disk::Buffered::kWaits, std::memory_order_relaxed);
    } else if (errnum == 0 || errnum == EAGAIN) {
      disk_->buffered_.store(Disk::Buffered::kBegins, std::memory_order_relaxed);
    }
    if (errnum != 0) {
      return false;
    }
  }
  const std::uint64_t ended_ns = monotonic_ns();
  if (const std::uint64_t took_ns = ended_ns - began_ns; took_ns > kWaitedNs) {
    disk_->not_before_ns_.store(ended_ns + kTimesAsLong * took_ns, std::memory_order_relaxed);
  }
  on_completion(op_, {.result = errnum != 0 ? -errnum : static_cast<std::int32_t>(written)});
  return true;
}

void DiskOp::submit() {
  const int fd = file_->fd.get();
  if (bounce_) {
    submit_bounced();
    return;
  }
  if (read_at_once() || write_at_once()) {
    return;
  }
  const std::span<const iovec> todo = std::span(rest_).subspan(first_);
  if (todo.size() == 1) {
    const std::span bytes(bytes_of(todo[0]), todo[0].iov_len);
    writes_ ? ring_->prep_write(op_, fd, bytes, file_offset_)
            : ring_->prep_read(op_, fd, bytes, file_offset_);
  } else {
    const auto batch = todo.first(std::min(todo.size(), kPiecesMax));
    writes_ ? ring_->prep_writev(op_, fd, batch, file_offset_)
            : ring_->prep_readv(op_, fd, batch, file_offset_);
  }
}

void DiskOp::submit_bounced() {
  const std::span room(bounce_.get(), std::min<std::uint64_t>(remaining_, kBounceBytes));
  if (!writes_) {
    ring_->prep_read(op_, file_->fd.get(), room, file_offset_);
    return;
  }
  std::size_t filled = 0;
  for (const iovec& piece : std::span(rest_).subspan(first_)) {
    const std::size_t taken = std::min(piece.iov_len, room.size() - filled);
    std::memcpy(room.data() + filled, piece.iov_base, taken);
    filled += taken;
  }
  ring_->prep_write(op_, file_->fd.get(), room, file_offset_);
}

void DiskOp::on_completion(Op& /*op*/, Completion completion) {
  if (!transfers_) {
    end_step(completion.result < 0 ? -completion.result : 0);
    return;
  }
  if (completion.result == -EINTR || completion.result == -EAGAIN) {
    submit();
    return;
  }
  if (completion.result <= 0) {
    // Nothing at all: the file was truncated under us.
    end_step(completion.result < 0 ? -completion.result : EIO);
    return;
  }
  advance(static_cast<std::uint64_t>(completion.result));
  if (remaining_ > 0) {
    submit();
  } else {
    end_step(0);
  }
}

void DiskOp::advance(std::uint64_t count) {
  file_offset_ += count;
  remaining_ -= count;
  const std::byte* bounced = bounce_.get();
  while (count > 0) {
    iovec& piece = rest_[first_];
    const std::size_t taken = std::min<std::uint64_t>(count, piece.iov_len);
    if (bounce_ && !writes_) {
      std::memcpy(piece.iov_base, bounced, taken);
      bounced += taken;
    }
    piece = piece_of(bytes_of(piece) + taken, piece.iov_len - taken);
    count -= taken;
    first_ += piece.iov_len == 0 ? 1 : 0;
  }
}

}  // namespace vireo
