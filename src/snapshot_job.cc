// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot_job.h"

#include <bit>
#include <cerrno>
#include <ctime>
#include <utility>

#include <unistd.h>

#include <fmt/core.h>

#include "arch/arch.h"
#include "src/config_value.h"
#include "src/memory/page_table.h"
#include "src/uuid.h"

namespace vireo {

namespace {

std::uint64_t realtime_ns() {
  timespec now = {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

SnapshotJob::SnapshotJob(const Context& context, UniqueFd file, DiskCheckpoint disks,
                         const Kind& kind)
    : context_(context),
      file_(std::move(file)),
      disks_(std::move(disks)),
      kind_(kind),
      pages_(context.memory.size() / kImagePage),
      logs_(kind.keep_log),
      changed_(context.memory.size() / kImagePage) {
  disks_job_.bind<SnapshotJob, &SnapshotJob::see_to_disks, &SnapshotJob::on_disks>(this);
  collect_job_.bind<SnapshotJob, &SnapshotJob::collect, &SnapshotJob::on_collected>(this);
  file_job_.bind<SnapshotJob, &SnapshotJob::write_file, &SnapshotJob::on_file_written>(this);
}

Result<std::unique_ptr<SnapshotJob>> SnapshotJob::create(const Context& context, UniqueFd file,
                                                         DiskCheckpoint disks, const Kind& kind) {
  auto job = std::unique_ptr<SnapshotJob>(
      new SnapshotJob(context, std::move(file), std::move(disks), kind));
  job->facts_.pages = job->pages_.pages();
  job->facts_.diff = kind.pages != Pages::kAll;
  job->facts_.parent = kind.parent;
  TRY_ASSIGN(job->facts_.uuid, random_uuid());
  job->memory_offset_ = snapshot_memory_offset(job->facts_.pages);
  TRY_ASSIGN(MemoryImageWriter image,
             MemoryImageWriter::create(context.memory, job->file_.get(), job->memory_offset_,
                                       job->facts_.diff ? PageKind::kAbsent : PageKind::kZero));
  job->memory_ = std::make_unique<MemorySave>(context.reactor, context.offload, std::move(image));
  return job;
}

SnapshotJob::~SnapshotJob() {
  if (!context_.changes.running()) {
    return;
  }
  if (!kind_.keep_log) {
    context_.changes.stop();
  } else if (!captured_) {
    context_.changes.give_back(changed_);  // the parent of the next diff is the one before this
  }
}

void SnapshotJob::precopy(const PrecopyLimits& limits, Done done) {
  limits_ = limits;
  logs_ = true;
  done_ = std::move(done);
  begin(disks_job_, &SnapshotJob::on_disks);
}

void SnapshotJob::capture(SavedMachine machine, Done done) {
  facts_.created_ns = realtime_ns();
  capturing_ = true;
  machine_ = std::move(machine);
  done_ = std::move(done);
  begin(disks_job_, &SnapshotJob::on_disks);
}

void SnapshotJob::begin(OffloadJob& job, void (SnapshotJob::*refused)(Result<>)) {
  if (Result<> submitted = context_.offload.submit(context_.reactor, job); !submitted) {
    (this->*refused)(std::move(submitted));
  }
}

/// On a thread of the pool.
Result<> SnapshotJob::see_to_disks() {
  if (!capturing_) {
    return disks_.prepare();
  }
  TRY_ASSIGN(saved_disks_, disks_.take());
  return {};
}

void SnapshotJob::on_disks(Result<> result) {
  if (result && capturing_) {
    result = save_state();
  }
  if (result) {
    begin(collect_job_, &SnapshotJob::on_collected);
  } else {
    end_step(std::move(result));
  }
}

/// Finds the pages of the round. On a thread of the pool.
Result<> SnapshotJob::collect() {
  if (!left_) {
    pages_.clear();
  }
  PageSet changed(pages_.pages());
  if (context_.changes.running()) {
    TRY(context_.changes.take(changed));
    changed_.add_all_of(changed);
  } else if (logs_) {
    // First the log, then the look: what comes to be in between is in both.
    TRY(context_.changes.start());
  }
  if (rounds_ > 0 || kind_.pages == Pages::kLogged) {
    pages_.add_all_of(changed);
    return {};
  }
  if (kind_.pages == Pages::kPrivate) {
    return context_.memory.add_private(context_.pagemap, pages_);
  }
  context_.memory.add_populated(context_.pagemap, pages_);
  return {};
}

/// Whether precopy() is done, with that result.
bool SnapshotJob::over_limits(Result<>& result) {
  const std::uint64_t bytes = pages_.count() * kImagePage;
  if (bytes <= limits_.bytes) {
    return true;
  }
  if (rounds_ < limits_.rounds || limits_.over == PrecopyLimits::Over::kWait) {
    return false;
  }
  if (limits_.over == PrecopyLimits::Over::kRefuse) {
    result = fail(ErrorCode::kConfig,
                  fmt::format("the guest changes more memory than it may stand still for: {} while "
                              "the last of {} rounds was written, and {} may be left; ask for more "
                              "(left, rounds), or for \"over\": \"wait\" or \"pause\"",
                              format_size(bytes), rounds_, format_size(limits_.bytes)));
  }
  return true;
}

void SnapshotJob::on_collected(Result<> result) {
  if (!result) {
    end_step(std::move(result));
  } else if (!capturing_ && rounds_ > 0 && over_limits(result)) {
    left_ = true;
    end_step(std::move(result));
  } else {
    memory_->round(pages_, [this](Result<> written) { on_round(std::move(written)); });
  }
}

void SnapshotJob::on_round(Result<> result) {
  ++rounds_;
  left_ = false;
  captured_ = capturing_ && result.has_value();
  if (!result || capturing_) {
    end_step(std::move(result));
  } else {
    begin(collect_job_, &SnapshotJob::on_collected);
  }
}

void SnapshotJob::end_step(Result<> result) {
  std::exchange(done_, nullptr)(std::move(result));
}

Result<> SnapshotJob::save_state() {
  writer_.add(0, std::move(machine_));
  writer_.add(0, std::move(saved_disks_));
  context_.devices.save(writer_);
  // After the devices: those that were draining may have raised interrupts.
  return arch::save_kvm_state(context_.vm, context_.vcpu_fds, context_.cpu_model, writer_);
}

void SnapshotJob::finish(Done done) {
  done_ = std::move(done);
  begin(file_job_, &SnapshotJob::on_file_written);
}

/// On a thread of the pool.
Result<> SnapshotJob::write_file() {
  static_assert(std::endian::native == std::endian::little);
  const MemoryImageWriter& image = memory_->image();
  const std::vector<PageRun> runs = image.page_table();
  for (const PageRun& run : runs) {
    data_bytes_ += run.kind == PageKind::kData ? run.count * kImagePage : 0;
  }
  const std::vector<std::byte> table = encode_page_table(runs);
  TRY(disks_.sync());
  TRY(write_snapshot_file(
      file_.get(), facts_, writer_.sections(),
      {.page_table = table, .page_checksums = std::as_bytes(image.checksums())},
      {.offset = memory_offset_, .size = image.places() * kImagePage, .pages = image.places()}));
  if (::fsync(file_.get()) < 0) {
    return fail_errno(errno, "writing the snapshot to its disk");
  }
  return {};
}

void SnapshotJob::on_file_written(Result<> result) {
  end_step(std::move(result));
}

}  // namespace vireo
