// SPDX-License-Identifier: Apache-2.0
// How a machine runs, pauses and starts anew.
#include "src/machine.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <utility>

#include "devices/legacy/terminal.h"
#include "src/base/log.h"
#include "src/device_arguments.h"
#include "src/memory/bus_error.h"

namespace vireo {

std::string_view name_of(MachineState state) {
  constexpr std::array<std::string_view, 7> kNames = {"starting", "running",  "pausing", "paused",
                                                      "saving",   "stopping", "standby"};
  return kNames.at(std::to_underlying(state));
}

Machine::Machine(const Config& config, Timeline& timeline)
    : config_(config),
      timeline_(timeline),
      events_(config.name, timeline.start_ns()),
      mmio_places_(mmio_places(config)) {
  ready_task_.bind<Machine, &Machine::become_ready>(this);
  paused_task_.bind<Machine, &Machine::on_vcpu_paused>(this);
  reset_task_.bind<Machine, &Machine::on_reset>(this);
  devices_quiet_task_.bind<Machine, &Machine::on_devices_quiet>(this);
  devices_resumed_task_.bind<Machine, &Machine::on_devices_resumed>(this);
  snapshot_done_task_.bind<Machine, &Machine::on_snapshot_done>(this);
  memory_there_task_.bind<Machine, &Machine::on_memory_there>(this);
}

Machine::~Machine() {
  stop_vcpus();
  forget_bus_errors();
  if (hung_) {
    // The kernel has operations of theirs: they end with the process, and no sooner. Named here, so
    // that nobody takes them for lost.
    devices_->close_console();
    [[maybe_unused]] static const std::array<const void*, 5> left = {
        devices_.release(), io_threads_.release(), reactor_.release(), feeder_.release(),
        memory_.release()};
  }
}

Result<int> Machine::run() {
  if (feeder_) {
    TRY(start_feeder());
  }
  signals_->start<Machine, &Machine::on_signal>(this);
  supervisor_->start();
  supervisor_->status("starting");
  Result<> served = serve();
  // A vCPU may be waiting for the reactor that has ended.
  reactor_->refuse_calls();
  stop_vcpus();
  if (offload_) {
    offload_->close();  // what is still on its way ends, and is dropped
  }
  look_for_lost_memory();
  announce_end();
  signals_->stop();
  supervisor_->stop();
  stop_timer_->cancel();
  ready_timer_->cancel();
  snapshot_timer_->cancel();
  if (end_listener_) {
    end_listener_();
  }
  finish_devices();
  if (!hung_) {
    feeder_.reset();  // nobody touches memory any more; it would tell a reactor that is gone
  }
  restore_terminal();
  timeline_.record(Step::kEnd);
  TRY(std::move(served));
  TRY(write_reports());
  if (!failure_) {
    failure_ = io_threads_->failure();
  }
  if (failure_) {
    return std::unexpected(*failure_);
  }
  return exit_status();
}

/// From the first thread to the end of the guest.
Result<> Machine::serve() {
  TRY(start_vcpus());
  const bool stood_by = standby_ != nullptr;
  if (stood_by) {
    TRY(wait_for_load());
    if (end_.load() != End::kNone) {
      return {};
    }
  }
  devices_->start();
  if (restored_) {
    TRY(restore_devices());
  }
  // Who asks for something finds a machine that can do it.
  if (const auto listener = std::exchange(start_listener_, nullptr)) {
    listener();
  }
  set_state(MachineState::kRunning);
  // Before, for a guest with the only processor would keep who waits for it waiting.
  if (config_.ready.when == ReadyConfig::When::kStarted) {
    saw_readiness();
    become_ready();
  } else {
    ready_timer_->arm(config_.ready.timeout_ns);
  }
  // None waits for another thread on its way to the guest: a processor that others keep busy
  // would cost milliseconds each time.
  for (const auto& vcpu : vcpus_) {
    vcpu->resume();
  }
  TRY(wait_for_vcpus());
  if (const LoadDone done = std::exchange(load_done_, nullptr)) {
    done({});
  }
  // The last threads, while the guest runs already: from here on this one starts none.
  if (!stood_by) {
    TRY(start_pool());
  }
  if (config_.sandbox.enabled) {
    TRY(narrow_sandbox(SandboxedThread::kMain));
  }
  if (!pause_waiters_.empty()) {
    begin_pause();  // asked for while the devices began
  }
  return reactor_->run();
}

Result<> Machine::start_vcpus() {
  TRY(io_threads_->start(
      [this] {
        return config_.sandbox.enabled ? narrow_sandbox(SandboxedThread::kIo) : Result<>();
      },
      [this] { end(End::kFailed); }));
  for (const auto& vcpu : vcpus_) {
    TRY(vcpu->start());
  }
  return {};
}

Result<> Machine::wait_for_vcpus() {
  for (const auto& vcpu : vcpus_) {
    TRY(vcpu->wait_started());
  }
  return {};
}

Result<> Machine::start_pool() {
  if (!offload_) {
    return {};
  }
  return offload_->start([this] {
    return config_.sandbox.enabled ? narrow_sandbox(SandboxedThread::kOffload) : Result<>();
  });
}

void Machine::stop_vcpus() {
  for (const auto& vcpu : vcpus_) {
    vcpu->stop();
  }
}

void Machine::on_signal(int signal) {
  switch (signal) {
    case SIGHUP:
      if (Result<> reopened = reopen_log(); !reopened) {
        log_warn("log", "{}", reopened.error().message());
      }
      break;
    case SIGUSR1:
      if (Result<> written = write_metrics(); !written) {
        log_warn("metrics", "{}", written.error().message());
      }
      break;
    case SIGCONT:
      renew_raw_terminal();
      break;
    default:
      stop(kStopTimeoutNs);
      break;
  }
}

// How it goes
// ---------------------------------------------------------------------------------------

void Machine::set_state(MachineState state) {
  state_ = state;
  supervisor_->status(ready_ && state == MachineState::kRunning ? "ready" : name_of(state));
  events_.publish(name_of(state));
}

void Machine::vcpu_first_entry(unsigned index) {
  if (index == 0 && !timeline_.reached(Step::kFirstEntry)) {
    timeline_.record(Step::kFirstEntry);
  }
}

/// What makes the VM ready has happened. Any thread.
void Machine::saw_readiness() {
  if (!ready_seen_.exchange(true)) {
    timeline_.record(Step::kReady);
    reactor_->post(ready_task_);
  }
}

void Machine::become_ready() {
  if (std::exchange(ready_, true)) {
    return;
  }
  ready_timer_->cancel();
  supervisor_->ready();
  supervisor_->status("ready");
  events_.publish("ready");
}

void Machine::on_ready_timeout() {
  log_error("machine", "not ready within {} (ready.when, ready.timeout)",
            format_duration(config_.ready.timeout_ns));
  end(End::kNotReady);
}

void Machine::mark(std::uint8_t number) {
  timeline_.record_mark(number);
  if (profile_) {
    profile_->end_phase();
  }
  phase_.fetch_add(1, std::memory_order_relaxed);
  if (config_.ready.when == ReadyConfig::When::kMark && number == config_.ready.mark) {
    saw_readiness();
  }
}

void Machine::vcpu_ended(unsigned index, VcpuEnd how, const std::string& what) {
  log_error("kvm", "vCPU {}: {}", index, how == VcpuEnd::kHostMemory ? lost_page_ : what);
  end(how == VcpuEnd::kHostMemory ? End::kHostMemory : End::kCrash);
}

void Machine::vcpu_faults_in_vain(unsigned /*index*/) {
  memory_->touch_outside_parts();
}

Result<> Machine::vcpu_thread_begins(unsigned index) {
  TRY(Limits::place_vcpu(config_.limits, index));
  return config_.sandbox.enabled ? narrow_sandbox(SandboxedThread::kVcpu) : Result<>();
}

// Pause, resume, restart
// ----------------------------------------------------------------------------

void Machine::pause(std::function<void()> done) {
  pause_waiters_.push_back(std::move(done));
  begin_pause();
}

void Machine::begin_pause() {
  if (state_ == MachineState::kRunning) {
    set_state(MachineState::kPausing);
    halt_vcpus();
  }
  on_vcpu_paused();
}

void Machine::vcpu_paused(unsigned /*index*/) {
  reactor_->post(paused_task_);
}

void Machine::on_vcpu_paused() {
  const auto stands = [](const std::unique_ptr<Vcpu>& vcpu) { return vcpu->is_paused(); };
  if (state_ == MachineState::kPausing && std::ranges::all_of(vcpus_, stands)) {
    set_state(MachineState::kPaused);
  }
  if (state_ == MachineState::kPaused) {
    for (const std::function<void()>& done : std::exchange(pause_waiters_, {})) {
      done();
    }
  }
}

bool Machine::resume() {
  if (state_ != MachineState::kPaused) {
    return false;
  }
  if (devices_still_) {
    resume_devices();
  } else if (!devices_resuming_) {
    for (const auto& vcpu : vcpus_) {
      vcpu->resume();
    }
  }
  set_state(MachineState::kRunning);
  return true;
}

void Machine::reset() {
  // A kernel without the pvpanic driver (any early panic) tells by its console, then resets.
  if (!reset_state_ || devices_->console().saw_panic()) {
    end(End::kReset);
  } else {
    halt_vcpus();
    reactor_->post(reset_task_);
  }
}

void Machine::on_reset() {
  if (state_ == MachineState::kStopping) {
    end(End::kStopped);  // it was asked to go
    return;
  }
  if (std::exchange(restarting_, true)) {
    return;  // a guest that asks twice, or with two vCPUs
  }
  runs_after_restart_ =
      state_ == MachineState::kRunning || (snapshot_ != nullptr && ran_before_snapshot_);
  pause([this] { devices_->quiesce(devices_quiet_task_); });
}

void Machine::on_devices_quiet() {
  const bool saves = std::exchange(snapshot_waits_, false);
  if (!std::exchange(restarting_, false)) {
    if (saves) {
      capture_snapshot();
    } else {
      devices_quiet_ = true;
    }
    return;
  }
  if (saves) {
    snapshot_result_ = fail(ErrorCode::kConfig, "the guest asked for a reboot meanwhile");
    set_state(MachineState::kPaused);
    reactor_->post(snapshot_done_task_);
  }
  if (Result<> restarted = restart(); !restarted) {
    failure_ = std::move(restarted).error().context("restarting the guest");
    end(End::kFailed);
    return;
  }
  ++restarts_;
  events_.publish("restarted");
  log_info("machine", "the guest asked for a reboot, and starts anew");
  if (runs_after_restart_) {
    resume();
  }
}

/// The machine as it was before the first instruction, with the kernel loaded anew.
Result<> Machine::restart() {
  forget_changes();  // no log has what is done to memory here
  devices_->reset();
  feeder_.reset();
  TRY(memory_->clear());
  TRY(boot_->load(*memory_, MemoryState::kZero));
  TRY_ASSIGN(const EntryPoint entry, write_tables());
  TRY(arch::restore_reset_state(*vm_, vcpu_fds_, *reset_state_));
  return setup_boot_vcpu(entry);
}

Result<> Machine::inject_nmi() {
  for (const std::uint32_t id : cpu_ids_) {
    TRY(arch::inject_nmi(*vm_, id));
  }
  return {};
}

}  // namespace vireo
