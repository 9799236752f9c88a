// SPDX-License-Identifier: Apache-2.0
#include "devices/block/block_queue.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "devices/virtio/uapi.h"
#include "src/base/error.h"

namespace vireo {

namespace {

DiskOp::Kind kind_of(std::uint32_t type) {
  switch (type) {
    case VIRTIO_BLK_T_IN:
      return DiskOp::Kind::kRead;
    case VIRTIO_BLK_T_OUT:
      return DiskOp::Kind::kWrite;
    case VIRTIO_BLK_T_DISCARD:
      return DiskOp::Kind::kDiscard;
    case VIRTIO_BLK_T_WRITE_ZEROES:
      return DiskOp::Kind::kWriteZeroes;
    default:
      return DiskOp::Kind::kFlush;
  }
}

std::string_view name_of(DiskOp::Kind kind) {
  constexpr std::array<std::string_view, 5> kNames = {"a read", "a write", "a flush", "a discard",
                                                      "writing zeroes"};
  return kNames.at(std::to_underlying(kind));
}

void add(std::atomic<std::uint64_t>& counter, std::uint64_t amount = 1) {
  counter.fetch_add(amount, std::memory_order_relaxed);
}

}  // namespace

void BlockQueue::adopt(Disk& disk, std::function<void()> left) {
  size_ = disk.size();
  on_old_disk_ = &disk == disk_ ? 0 : pending_.size() - spare_.size();
  disk_ = &disk;
  if (on_old_disk_ == 0) {
    left();
  } else {
    left_ = std::move(left);
  }
  retry();  // by other limits, perhaps
}

void BlockQueue::replace(Disk& disk) {
  CHECK(pending_.size() == spare_.size());
  disk_ = &disk;
}

QueueHandler::Served BlockQueue::serve() {
  BlockRequestRules rules = shared_.rules;
  rules.size = size_;
  for (unsigned served = 0; served < queue().size(); ++served) {
    std::optional<DescriptorChain> chain = queue().pop();
    if (!chain) {
      return Served::kAll;
    }
    Pending& pending = take_spare();
    const std::uint8_t status = parse_block_request(*chain, rules, pending.request);
    if (!admit(shared_.limiter, pending.request.bytes())) {
      add(shared_.counters.throttled);
      queue().undo_pop(std::move(*chain));
      spare_.push_back(&pending);
      return Served::kBlocked;
    }
    pending.chain.emplace(std::move(*chain));
    if (status == VIRTIO_BLK_S_OK) {
      begin(pending);
    } else {
      add(shared_.counters.refused);
      end(pending, status);
    }
  }
  return Served::kSome;
}

BlockQueue::Pending& BlockQueue::take_spare() {
  if (spare_.empty()) {
    pending_.push_back(std::make_unique<Pending>());
    pending_.back()->bind<BlockQueue, &BlockQueue::on_disk>(this);
    spare_.push_back(pending_.back().get());
  }
  Pending& pending = *spare_.back();
  spare_.pop_back();
  pending.disk = disk_;
  return pending;
}

void BlockQueue::begin(Pending& pending) {
  BlockRequest& request = pending.request;
  pending.next_range = 0;
  pending.flushing = false;
  pending.kind = kind_of(request.type);
  switch (request.type) {
    case VIRTIO_BLK_T_GET_ID:
      get_id(pending);
      return;
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
      if (request.length == 0) {
        end(pending, VIRTIO_BLK_S_OK);
        return;
      }
      pending.offset = request.offset;
      pending.length = request.length;
      pending.alone = queue().outstanding() == 1 && !queue().has_more();
      std::swap(pending.pieces, request.pieces);
      break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
      begin_next_range(pending);
      return;
    default:
      break;
  }
  pending.disk->start(pending, reactor().ring());
}

void BlockQueue::begin_next_range(Pending& pending) {
  if (pending.next_range == pending.request.ranges.size()) {
    on_disk(pending, 0);
    return;
  }
  const BlockRequest::Range& range = pending.request.ranges[pending.next_range++];
  pending.offset = range.offset;
  pending.length = range.length;
  pending.unmap = range.unmap;
  pending.disk->start(pending, reactor().ring());
}

void BlockQueue::on_disk(DiskOp& op, int errnum) {
  auto& pending = static_cast<Pending&>(op);
  if (errnum != 0) {
    add(shared_.counters.errors);
    log_guest(shared_.log_limiter, "block", "disk {}: {} failed: {}{}", shared_.id,
              name_of(op.kind), std::strerror(errnum),
              op.kind == DiskOp::Kind::kFlush
                  ? "; what was written before it may be lost, and no flush succeeds any more"
                  : "");
    end(pending, VIRTIO_BLK_S_IOERR);
  } else if (pending.next_range < pending.request.ranges.size()) {
    begin_next_range(pending);
  } else if (shared_.write_through && op.kind != DiskOp::Kind::kRead && !pending.flushing) {
    pending.flushing = true;
    op.kind = DiskOp::Kind::kFlush;
    pending.disk->start(op, reactor().ring());
  } else {
    count(pending.request);
    end(pending, VIRTIO_BLK_S_OK);
  }
}

/// §5.2.6: a text of up to 20 bytes, padded with zeros.
void BlockQueue::get_id(Pending& pending) {
  std::array<char, kIdBytes> id = {};
  std::ranges::copy(shared_.id.substr(0, id.size()), id.begin());
  std::size_t at = 0;
  for (const iovec& piece : pending.request.pieces) {
    std::memcpy(piece.iov_base, id.data() + at, piece.iov_len);
    at += piece.iov_len;
  }
  end(pending, VIRTIO_BLK_S_OK);
}

void BlockQueue::count(const BlockRequest& request) {
  BlockCounters& counters = shared_.counters;
  switch (request.type) {
    case VIRTIO_BLK_T_IN:
      add(counters.reads);
      add(counters.read_bytes, request.length);
      return;
    case VIRTIO_BLK_T_OUT:
      add(counters.writes);
      add(counters.written_bytes, request.length);
      return;
    case VIRTIO_BLK_T_FLUSH:
      add(counters.flushes);
      return;
    default:
      add(counters.discards);
      return;
  }
}

void BlockQueue::end(Pending& pending, std::uint8_t status) {
  // All of the driver's buffers count as written, whatever the status, which is their last byte.
  const auto written =
      static_cast<std::uint32_t>(BufferCursor(pending.chain->writable()).remaining());
  const bool told = write_block_status(*pending.chain, status);
  give_back(std::move(*pending.chain), told ? written : 0);
  pending.chain.reset();
  spare_.push_back(&pending);
  if (on_old_disk_ > 0 && pending.disk != disk_ && --on_old_disk_ == 0) {
    std::exchange(left_, nullptr)();
  }
}

}  // namespace vireo
