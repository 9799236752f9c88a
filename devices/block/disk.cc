// SPDX-License-Identifier: Apache-2.0
#include "devices/block/disk.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace vireo {

namespace {

/// The kernel takes no more pieces at a time (IOV_MAX).
constexpr std::size_t kPiecesMax = 1024;
/// What goes through a bounce buffer at a time.
constexpr std::size_t kBounceBytes = std::size_t{256} << 10;

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
  begin_transfer(ring, file, kind == Kind::kWrite, file_offset);
}

void DiskOp::read(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
                  std::span<std::byte> to) {
  rest_.assign({piece_of(to.data(), to.size())});
  remaining_ = to.size();
  begin_transfer(ring, file, false, file_offset);
}

void DiskOp::write(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
                   std::span<const std::byte> from) {
  rest_.assign({piece_of(from.data(), from.size())});
  remaining_ = from.size();
  begin_transfer(ring, file, true, file_offset);
}

void DiskOp::write_zeros(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
                         std::uint64_t count) {
  rest_.clear();
  remaining_ = count;
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

void DiskOp::submit() {
  const int fd = file_->fd.get();
  if (bounce_) {
    submit_bounced();
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
