// SPDX-License-Identifier: Apache-2.0
#include "devices/block/block_change.h"

#include <span>
#include <utility>

#include <fmt/core.h>

#include "src/base/log.h"

namespace vireo {

BlockChange::BlockChange(BlockShared& shared, std::vector<std::unique_ptr<BlockQueue>>& queues,
                         virtio_blk_config& config)
    : shared_(shared), queues_(queues), config_(config) {
  grow_task_.bind<BlockChange, &BlockChange::grow>(this);
  after_growth_task_.bind<BlockChange, &BlockChange::after_growth>(this);
  all_adopted_task_.bind<BlockChange, &BlockChange::all_adopted>(this);
  all_finished_task_.bind<BlockChange, &BlockChange::all_finished>(this);
  let_go_task_.bind<BlockChange, &BlockChange::let_go>(this);
}

Result<> BlockChange::check(const Wanted& wanted) const {
  const Disk& disk = wanted.disk ? *wanted.disk : *shared_.disk;
  const std::uint32_t block_size = shared_.rules.block_size;
  if (disk.limits().block_size > block_size) {
    return fail(ErrorCode::kConfig,
                fmt::format("path: its blocks are {} bytes, and the guest was told {}",
                            disk.limits().block_size, block_size));
  }
  if (disk.size() % block_size != 0) {
    return fail(
        ErrorCode::kConfig,
        fmt::format("its size is no multiple of the {} bytes that the guest was told", block_size));
  }
  if (!wanted.bytes || *wanted.bytes == disk.size()) {
    return {};
  }
  const auto wrong = [](const std::string& what) {
    return fail(ErrorCode::kConfig, "size: " + what);
  };
  if (shared_.rules.readonly) {
    return wrong("the disk is read-only; leave it out");
  }
  if (*wanted.bytes < disk.size()) {
    return wrong(fmt::format("{} bytes are less than the {} that it has; a disk can only grow",
                             *wanted.bytes, disk.size()));
  }
  if (*wanted.bytes % block_size != 0) {
    return wrong(fmt::format("wants a multiple of {} bytes", block_size));
  }
  if (const Result<> fits = disk.check_growth(*wanted.bytes); !fits) {
    return wrong(fits.error().message());
  }
  return {};
}

Result<> BlockChange::begin(Wanted wanted, const Place& place, Done done) {
  CHECK(!busy() && place.queues.size() == queues_.size());
  if (!wanted.disk) {
    TRY(shared_.disk->measure());
  }
  TRY(check(wanted));
  place_ = place;
  done_ = std::move(done);
  rate_limit_ = wanted.rate_limit;
  if (wanted.disk) {
    old_ = std::exchange(shared_.disk, std::move(wanted.disk));
  }
  if (wanted.bytes && *wanted.bytes > shared_.disk->size()) {
    op_.length = *wanted.bytes;
    place_.queues.front()->post(grow_task_);
  } else {
    adopt();
  }
  return {};
}

// Growing
// ----------------------------------------------------------------------------------------

void BlockChange::grow() {
  op_.kind = DiskOp::Kind::kGrow;
  op_.bind<BlockChange, &BlockChange::on_grown>(this);
  shared_.disk->start(op_, place_.queues.front()->ring());
}

void BlockChange::on_grown(DiskOp& /*op*/, int errnum) {
  errnum_ = errnum;
  place_.first->post(after_growth_task_);
}

void BlockChange::after_growth() {
  if (errnum_ == 0) {
    adopt();
    return;
  }
  if (old_) {
    shared_.disk = std::move(old_);
  }
  finish(fail_errno(errnum_, "growing it"));
}

// The queues
// -------------------------------------------------------------------------------------

void BlockChange::adopt() {
  if (rate_limit_) {
    shared_.limiter.configure(*rate_limit_, monotonic_ns());
  }
  while (parts_.size() < queues_.size()) {
    auto part = std::make_unique<Part>();
    part->change = this;
    part->queue = queues_[parts_.size()].get();
    part->task.bind<Part, &Part::adopt>(part.get());
    parts_.push_back(std::move(part));
  }
  unadopted_ = static_cast<unsigned>(parts_.size());
  unfinished_ = unadopted_ + 1;  // and all_adopted()
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    place_.queues[i]->post(parts_[i]->task);
  }
}

void BlockChange::Part::adopt() {
  queue->adopt(*change->shared_.disk, [owner = change] { owner->one_finished(); });
  if (change->unadopted_.fetch_sub(1) == 1) {
    change->place_.first->post(change->all_adopted_task_);
  }
}

/// The driver learns of a size when every queue serves it, and not later: the old disk may take its
/// time.
void BlockChange::all_adopted() {
  const std::uint64_t capacity = shared_.disk->size() / kSectorSize;
  if (config_.capacity != capacity) {
    config_.capacity = capacity;
    place_.host->publish_config(std::as_bytes(std::span(&config_, 1)));
  }
  one_finished();
}

void BlockChange::one_finished() {
  if (unfinished_.fetch_sub(1) == 1) {
    place_.first->post(all_finished_task_);
  }
}

// The end of the old disk
// ------------------------------------------------------------------------

void BlockChange::all_finished() {
  if (old_ == nullptr) {
    finish({});
    return;
  }
  op_.bind<BlockChange, &BlockChange::on_flushed>(this);
  if (shared_.rules.readonly) {
    on_flushed(op_, 0);
    return;
  }
  op_.kind = DiskOp::Kind::kFlush;
  old_->start(op_, place_.first->ring());
}

void BlockChange::on_flushed(DiskOp& /*op*/, int errnum) {
  errnum_ = errnum;
  // Later: the operation is the old disk's until this has returned.
  place_.first->post(let_go_task_);
}

void BlockChange::let_go() {
  old_.reset();
  finish(errnum_ == 0
             ? Result<>()
             : fail_errno(errnum_, "changed, but the last flush of the file before failed"));
}

void BlockChange::finish(const Result<>& result) {
  std::exchange(done_, nullptr)(result);
}

}  // namespace vireo
