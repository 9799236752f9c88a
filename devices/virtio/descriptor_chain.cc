// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/descriptor_chain.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace vireo {

BufferCursor::BufferCursor(std::span<const GuestBuffer> buffers) : buffers_(buffers) {
  for (const GuestBuffer& buffer : buffers) {
    remaining_ += buffer.host.size();
  }
}

template <typename Visit>
bool BufferCursor::visit(std::uint64_t size, Visit visit) {
  if (size > remaining_) {
    return false;
  }
  remaining_ -= size;
  while (size > 0) {
    const std::span<std::byte> rest = buffers_.front().host.subspan(offset_);
    const std::span<std::byte> piece = rest.first(std::min<std::uint64_t>(size, rest.size()));
    visit(piece);
    size -= piece.size();
    offset_ += piece.size();
    if (piece.size() == rest.size()) {
      buffers_ = buffers_.subspan(1);
      offset_ = 0;
    }
  }
  return true;
}

bool BufferCursor::skip(std::uint64_t size) {
  return visit(size, [](std::span<std::byte> /*piece*/) {});
}

bool BufferCursor::take(std::uint64_t size, std::vector<iovec>& pieces) {
  return visit(size, [&pieces](std::span<std::byte> piece) {
    pieces.push_back({.iov_base = piece.data(), .iov_len = piece.size()});
  });
}

bool Reader::read(std::span<std::byte> bytes) {
  const bool taken = visit(bytes.size(), [&bytes](std::span<const std::byte> piece) {
    std::memcpy(bytes.data(), piece.data(), piece.size());
    bytes = bytes.subspan(piece.size());
  });
  // The compiler may not read guest memory a second time in place of the copy.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return taken;
}

bool Writer::write(std::span<const std::byte> bytes) {
  return visit(bytes.size(), [&bytes](std::span<std::byte> piece) {
    std::memcpy(piece.data(), bytes.data(), piece.size());
    bytes = bytes.subspan(piece.size());
  });
}

}  // namespace vireo
