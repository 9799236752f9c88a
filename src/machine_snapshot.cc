// SPDX-License-Identifier: Apache-2.0
// How a machine is saved while it runs.
#include <algorithm>
#include <utility>

#include "src/base/log.h"
#include "src/machine.h"
#include "src/saved_disks.h"
#include "src/uuid.h"

namespace vireo {

namespace {

/// Within which requests to disks have to end, so that there can be a snapshot.
constexpr std::uint64_t kQuiesceNs = 10'000'000'000;

}  // namespace

Result<> Machine::snapshot(SnapshotRequest request, SnapshotDone done) {
  if (state_ != MachineState::kRunning && state_ != MachineState::kPaused) {
    return fail(ErrorCode::kConfig, fmt::format("the VM is {}", name_of(state_)));
  }
  if (snapshot_ || restarting_) {
    return fail(ErrorCode::kConfig,
                snapshot_ ? "a snapshot before this one is not done yet; ask again later"
                          : "the guest is starting anew; ask again later");
  }
  if (devices_->giving_up()) {
    return fail(
        ErrorCode::kConfig,
        "a disk has not answered since the snapshot before this one; ask again when it has");
  }
  TRY_ASSIGN(const SnapshotJob::Kind kind, kind_of(request));
  TRY_ASSIGN(DiskCheckpoint disks,
             DiskCheckpoint::create(request.disks, std::move(request.disk_files), *devices_,
                                    config_, directory_));
  TRY_ASSIGN(snapshot_, SnapshotJob::create({.vm = *vm_,
                                             .vcpu_fds = vcpu_fds_,
                                             .cpu_model = *cpu_model_,
                                             .memory = *memory_,
                                             .changes = *changes_,
                                             .devices = *devices_,
                                             .reactor = *reactor_,
                                             .offload = *offload_,
                                             .pagemap = pagemap_.get()},
                                            std::move(request.file), std::move(disks), kind));
  snapshot_then_ = request.then;
  snapshot_void_ = false;
  snapshot_done_ = std::move(done);
  ran_before_snapshot_ = state_ == MachineState::kRunning;
  if (ran_before_snapshot_ && request.then == AfterSnapshot::kResume) {
    snapshot_->precopy(request.limits,
                       [this](Result<> copied) { on_precopied(std::move(copied)); });
  } else {
    halt_for_snapshot();
  }
  return {};
}

/// A diff is exact, or refused: what has changed since its parent has to be known.
Result<SnapshotJob::Kind> Machine::kind_of(const SnapshotRequest& request) const {
  SnapshotJob::Kind kind = {.keep_log = config_.machine.track_dirty};
  if (!request.diff) {
    return kind;
  }
  if (request.parent || last_snapshot_ || mapped_from_) {
    kind.parent = request.parent   ? *request.parent
                  : last_snapshot_ ? *last_snapshot_
                                   : *mapped_from_;
    if (logged_since_ == kind.parent) {
      kind.pages = SnapshotJob::Pages::kLogged;
      return kind;
    }
    // More than what has changed since, where that was later.
    if (mapped_from_ &&
        (mapped_from_ == kind.parent || std::ranges::find(taken_, kind.parent) != taken_.end())) {
      kind.pages = SnapshotJob::Pages::kPrivate;
      return kind;
    }
  }
  return fail(ErrorCode::kConfig,
              fmt::format("diff: what has changed since {} is not known; wants machine.track_dirty "
                          "= true and a full snapshot before it, or a VM restored from its parent "
                          "with --memory map",
                          kind.parent == SnapshotUuid{} ? "a snapshot" : uuid_text(kind.parent)));
}

/// Memory is another one: what is known of changes says nothing any more.
void Machine::forget_changes() {
  snapshot_void_ = true;
  logged_since_.reset();
  mapped_from_.reset();
  last_snapshot_.reset();
  taken_.clear();
}

/// Most of memory is in the file.
void Machine::on_precopied(Result<> copied) {
  if (copied && state_ != MachineState::kRunning && state_ != MachineState::kPaused) {
    copied = fail(ErrorCode::kConfig, fmt::format("the VM is {}", name_of(state_)));
  }
  if (copied && std::exchange(snapshot_void_, false)) {
    copied = fail(ErrorCode::kConfig, "the guest asked for a reboot meanwhile");
  }
  if (!copied) {
    snapshot_result_ = std::move(copied);
    reactor_->post(snapshot_done_task_);
    return;
  }
  ran_before_snapshot_ = state_ == MachineState::kRunning;  // somebody may have paused it
  halt_for_snapshot();
}

void Machine::halt_for_snapshot() {
  snapshot_begun_ns_ = monotonic_ns();
  pause([this] {
    set_state(MachineState::kSaving);
    snapshot_waits_ = true;
    devices_->quiesce(devices_quiet_task_);
    snapshot_timer_->arm(kQuiesceNs);
  });
}

/// Requests of the guest's do not end, and it would stand still for as long: it goes on without its
/// snapshot.
void Machine::on_snapshot_timeout() {
  if (!std::exchange(snapshot_waits_, false)) {
    return;
  }
  std::string held_up;
  if (!restarting_) {  // else it has to be waited for
    for (const std::string& id : devices_->give_up()) {
      held_up += fmt::format("{}{}", held_up.empty() ? "" : ", ", id);
    }
  }
  snapshot_result_ = fail(
      ErrorCode::kSystem,
      fmt::format("requests to disks ({}) have not ended within {}; the VM goes on; see to what "
                  "is behind them, and ask again",
                  held_up, format_duration(kQuiesceNs)));
  set_state(MachineState::kPaused);
  const bool goes_on = ran_before_snapshot_ && pause_waiters_.empty() && !restarting_;
  on_vcpu_paused();
  if (goes_on) {
    resume();
  }
  reactor_->post(snapshot_done_task_);
  if (stop_after_snapshot_) {
    begin_stop();
  }
}

/// The devices stand still.
void Machine::capture_snapshot() {
  snapshot_timer_->cancel();
  Config config = snapshot_->disks().saved_config(config_);
  config.machine.uuid = uuid_;
  snapshot_->capture(save_machine(config, directory_, memory_->regions(), mmio_places_),
                     [this](Result<> captured) { on_captured(std::move(captured)); });
}

void Machine::on_captured(Result<> captured) {
  if (end_.load() != End::kNone) {
    return;  // it ends instead, and nobody waits any more
  }
  snapshot_pause_ns_ = monotonic_ns() - snapshot_begun_ns_;
  snapshot_result_ = std::move(captured);
  // Until the guest goes on its disks stay as they are, whatever waits in its queues.
  devices_still_ = true;
  disks_fit_snapshot_ = snapshot_result_.has_value();
  if (snapshot_result_) {
    snapshot_->disks().go_on(config_);
  }
  set_state(MachineState::kPaused);
  const bool goes_on = ran_before_snapshot_ && pause_waiters_.empty() &&
                       (!snapshot_result_ || snapshot_then_ == AfterSnapshot::kResume);
  on_vcpu_paused();  // for who has asked for it meanwhile
  if (goes_on) {
    resume();
  }
  if (snapshot_result_) {
    snapshot_->finish([this](Result<> finished) {
      snapshot_result_ = std::move(finished);
      if (!snapshot_result_) {
        const Error& error = snapshot_result_.error();
        snapshot_result_ = fail(error.code(), error.message() + snapshot_->disks().still_frozen());
      }
      reactor_->post(snapshot_done_task_);
    });
  } else {
    reactor_->post(snapshot_done_task_);
  }
  if (stop_after_snapshot_) {
    begin_stop();
  }
}

/// The end of a resume() behind a snapshot: the devices' first, then the vCPUs'.
void Machine::resume_devices() {
  devices_still_ = false;
  devices_resuming_ = true;
  if (std::exchange(disks_fit_snapshot_, false)) {
    for (const BlockDevice* const disk : devices_->disks()) {
      if (!disk->readonly()) {
        advance_generation(disk->disk().written_file());
      }
    }
  }
  devices_->resume(devices_resumed_task_);
}

void Machine::on_devices_resumed() {
  if (std::exchange(restored_, false)) {
    return;
  }
  devices_resuming_ = false;
  if (snapshot_) {
    snapshot_pause_ns_ = monotonic_ns() - snapshot_begun_ns_;
  }
  // Somebody may have asked for a pause again.
  if (end_.load() == End::kNone &&
      (state_ == MachineState::kRunning || state_ == MachineState::kStopping)) {
    for (const auto& vcpu : vcpus_) {
      vcpu->resume();
    }
  }
}

void Machine::on_snapshot_done() {
  if (end_.load() != End::kNone) {
    return;
  }
  const std::unique_ptr<SnapshotJob> job = std::move(snapshot_);
  const SnapshotDone done = std::exchange(snapshot_done_, nullptr);
  if (!snapshot_result_) {
    if (snapshot_then_ != AfterSnapshot::kResume && ran_before_snapshot_) {
      resume();  // nothing comes of the wish for which it stands still
    }
    log_warn("machine", "snapshot: {}", snapshot_result_.error().message());
    done(std::unexpected(snapshot_result_.error()));
    return;
  }
  const SnapshotReport report = {
      .uuid = job->facts().uuid, .data_bytes = job->data_bytes(), .pause_ns = snapshot_pause_ns_};
  last_snapshot_ = report.uuid;
  logged_since_ = config_.machine.track_dirty ? last_snapshot_ : std::nullopt;
  taken_.push_back(report.uuid);
  log_info("machine", "saved {} of guest memory; the guest stood still for {}",
           format_size(report.data_bytes), format_duration(report.pause_ns));
  events_.publish("saved");
  done(report);
  if (snapshot_then_ == AfterSnapshot::kStop) {
    end(End::kStopped);
  }
}

}  // namespace vireo
