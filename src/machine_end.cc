// SPDX-License-Identifier: Apache-2.0
// How a machine ends, and what is said of that.
#include <array>
#include <string_view>
#include <utility>

#include "src/base/log.h"
#include "src/machine.h"

namespace vireo {

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
/// How long the end waits for a console reader that has stopped.
constexpr std::uint64_t kConsoleTimeoutNs = kSecond;
/// And for a disk that does not answer.
constexpr std::uint64_t kDiskTimeoutNs = 30 * kSecond;

// Exit statuses, as README has them; those of errors are in main.
constexpr int kExitOk = 0;
constexpr int kExitReboot = 10;
constexpr int kExitPanic = 11;
constexpr int kExitCrash = 12;
constexpr int kExitNotReady = 13;
constexpr int kExitSystem = 71;

}  // namespace

/// The first request presses the guest's power button, a second one does not wait for it.
void Machine::stop(std::uint64_t timeout_ns) {
  if (std::exchange(stop_requested_, true)) {
    log_warn("machine", "stopped by a second request, without waiting for the guest");
    end(End::kStopped);
    return;
  }
  if (state_ == MachineState::kStandby) {
    end(End::kStopped);  // there is no guest yet
    return;
  }
  stop_timeout_ns_ = timeout_ns;
  if (snapshot_ != nullptr && state_ != MachineState::kRunning && state_ != MachineState::kPaused) {
    stop_after_snapshot_ = true;  // a machine that is being saved stands still
  } else {
    begin_stop();
  }
}

void Machine::begin_stop() {
  resume();  // a guest that stands still cannot shut down
  set_state(MachineState::kStopping);
  supervisor_->stopping();
  devices_->press_power_button();
  stop_timer_->arm(stop_timeout_ns_);
}

void Machine::kill() {
  log_warn("machine", "killed by request, without asking the guest");
  end(End::kStopped);
}

void Machine::give_up_waiting() {
  log_warn("machine", "the guest did not shut down within {}; stopped without it",
           format_duration(stop_timeout_ns_));
  end(End::kStopped);
}

void Machine::end(End how) {
  End none = End::kNone;
  if (end_.compare_exchange_strong(none, how)) {
    halt_vcpus();
    reactor_->stop();
  }
}

/// No instruction of the guest behind the one that ended it, however long the main thread takes to
/// come to that. Any thread.
void Machine::halt_vcpus() {
  for (const auto& vcpu : vcpus_) {
    vcpu->pause();
  }
}

/// Requests that are in flight end as they would have.
void Machine::finish_devices() {
  restarting_ = false;
  snapshot_waits_ = false;
  devices_->quiesce(devices_quiet_task_);
  hung_ = !reactor_->run_until([this] { return devices_quiet_; }, kDiskTimeoutNs);
  if (hung_) {
    log_error("machine", "a disk has not answered for {}: leaving without its last requests",
              format_duration(kDiskTimeoutNs));
  } else {
    io_threads_->stop();
  }
  devices_->console().finish(kConsoleTimeoutNs);
}

/// A guest whose memory was cut off has not crashed by itself, whatever KVM makes of it.
void Machine::look_for_lost_memory() {
  if (!memory_file_ || end_.load() != End::kCrash) {
    return;
  }
  const Result<std::uint64_t> bytes = regular_file_size(memory_file_.get());
  if (bytes && *bytes < memory_file_bytes_) {
    log_error("machine", "{}", lost_page_);
    end_ = End::kHostMemory;
  }
}

void Machine::announce_end() {
  struct Words {
    std::string_view event;
    std::string_view text;
  };
  const Words words = [this]() -> Words {
    switch (end_.load()) {
      case End::kPowerOff:
        return {"power_off", "the guest powered off"};
      case End::kReset:
        return exit_status() == kExitPanic ? Words{"panic", "the guest panicked"}
                                           : Words{"reboot", "the guest asked for a reboot"};
      case End::kPanic:
        return {"panic", "the guest panicked"};
      case End::kCrash:
        return {"crash", "the guest crashed"};
      case End::kHostMemory:
        return {"host_memory", "the host could not provide guest memory"};
      case End::kNotReady:
        return {"not_ready", "the guest was not ready in time"};
      case End::kFailed:
        return {"failed", "vireo failed"};
      case End::kNone:
      case End::kStopped:
        return {"stopped", "stopped by request"};
    }
    std::unreachable();
  }();
  if (state_ != MachineState::kStopping) {
    state_ = MachineState::kStopping;
    supervisor_->stopping();
  }
  supervisor_->status(words.text);
  events_.publish(words.event, words.text);
}

int Machine::exit_status() {
  switch (end_.load()) {
    case End::kNone:
    case End::kPowerOff:
    case End::kStopped:
      return kExitOk;
    case End::kReset:
      return devices_->console().saw_panic() ? kExitPanic : kExitReboot;
    case End::kPanic:
      return kExitPanic;
    case End::kCrash:
      return kExitCrash;
    case End::kHostMemory:
    case End::kFailed:
      return kExitSystem;
    case End::kNotReady:
      return kExitNotReady;
  }
  std::unreachable();
}

Result<> Machine::write_metrics() {
  return metrics_file_ ? metrics_file_->write(metrics_json(config_.name, metrics())) : Result<>();
}

Result<> Machine::write_reports() {
  if (timeline_file_) {
    TRY(timeline_file_->write(timeline_.to_json()));
  }
  if (profile_) {
    TRY_ASSIGN(const std::string profile,
               profile_->to_json(vcpus_, vm_stats_, devices_->ports(), devices_->mmio()));
    TRY(profile_file_->write(profile));
  }
  TRY(write_working_set());
  return write_metrics();
}

/// What was touched from the restore to the end.
Result<> Machine::write_working_set() {
  if (!working_set_file_) {
    return {};
  }
  if (!mapped_from_) {
    log_warn("machine", "--working-set: nothing is recorded: the guest has started anew");
    return {};
  }
  PageSet pages(memory_->size() / kImagePage);
  TRY(memory_->add_touched(pagemap_.get(), pages));
  WorkingSet set = {.snapshot = *mapped_from_, .runs = {}};
  pages.for_each(0, pages.pages(), [&runs = set.runs](std::uint64_t page) {
    if (!runs.empty() && runs.back().first + runs.back().count == page) {
      ++runs.back().count;
    } else {
      runs.push_back({.first = page, .count = 1});
    }
  });
  return working_set_file_->write(encode_working_set(set));
}

}  // namespace vireo
