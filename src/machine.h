// SPDX-License-Identifier: Apache-2.0
// The virtual machine: owns all parts. Reading build() from top to bottom is the boot order.
#pragma once

#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arch/arch.h"
#include "boot/boot.h"
#include "src/allowed_paths.h"
#include "src/bus/bus.h"
#include "src/config.h"
#include "src/device_set.h"
#include "src/disks.h"
#include "src/events.h"
#include "src/io/offload.h"
#include "src/io/reactor.h"
#include "src/io/signals.h"
#include "src/io_threads.h"
#include "src/kvm/vcpu.h"
#include "src/kvm/vm.h"
#include "src/limits.h"
#include "src/memory/guest_memory.h"
#include "src/memory/page_feeder.h"
#include "src/metrics.h"
#include "src/pid_file.h"
#include "src/profile.h"
#include "src/ready_text.h"
#include "src/report_file.h"
#include "src/restore.h"
#include "src/sandbox.h"
#include "src/saved_disks.h"
#include "src/snapshot_job.h"
#include "src/supervisor.h"
#include "src/timeline.h"

namespace vireo {

/// The io_uring operations that a machine uses: its rings take no others.
std::span<const std::uint8_t> ring_opcodes();

/// What the machine does at this moment.
enum class MachineState : std::uint8_t {
  kStarting,
  kRunning,
  kPausing,
  kPaused,
  kSaving,
  kStopping,
  kStandby,  // waits for a snapshot
};
/// "running" and so on, as status and events have it.
std::string_view name_of(MachineState state);

/// What becomes of the machine when its snapshot is there.
enum class AfterSnapshot : std::uint8_t { kResume, kPause, kStop };

struct SnapshotRequest {
  UniqueFd file;  ///< empty, open for writing
  AfterSnapshot then = AfterSnapshot::kResume;
  bool diff = false;                   ///< what has changed since …
  std::optional<SnapshotUuid> parent;  ///< … this one; without it the one before
  SnapshotJob::PrecopyLimits limits = {};
  DisksAtSnapshot disks = DisksAtSnapshot::kNone;
  std::vector<CheckpointFile> disk_files;  ///< see DiskCheckpoint
};

struct SnapshotReport {
  SnapshotUuid uuid = {};
  std::uint64_t data_bytes = 0;  ///< of guest memory, in the file
  std::uint64_t pause_ns = 0;    ///< the guest stood still for so long
};
using SnapshotDone = std::function<void(const Result<SnapshotReport>&)>;
using LoadDone = std::function<void(const Result<>&)>;

class Machine final : MachineEvents, VcpuObserver, ConsoleListener, ReadyTextListener {
 public:
  static constexpr std::uint64_t kStopTimeoutNs = 10'000'000'000;
  /// What the process does something about. Blocked from before the first thing that would be left
  /// behind by one; what arrives before run() is served there.
  static constexpr std::array kSignals = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCONT};

  /// Builds the whole machine, up to a guest that would run. `config` and `timeline` outlive it.
  /// Main thread, while it is the only one.
  static Result<std::unique_ptr<Machine>> build(const Config& config, Timeline& timeline);
  /// The same of a machine that was saved, as it then was. `config` is restored_config() of
  /// `source`, which is not needed any more.
  static Result<std::unique_ptr<Machine>> restore(const Config& config, RestoreSource source,
                                                  Timeline& timeline);
  /// A machine that has all but a guest: run() waits for load().
  static Result<std::unique_ptr<Machine>> stand_by(PreparedMachine prepared, Timeline& timeline);
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() override;

  /// From here on nothing is opened and nothing executed: the inputs are closed, the buses fixed,
  /// the sandbox entered. The caller's own names are removed later in `further_directories`. Once,
  /// main thread, while it is the only one.
  Result<> seal(std::span<const int> further_directories);
  /// Runs the guest until it ends, and returns the process's exit status.
  Result<int> run();
  /// Runs on the main thread when the reactor serves, before the guest runs.
  void at_start(std::function<void()> listener) { start_listener_ = std::move(listener); }
  /// Runs on the main thread when the guest has ended and its end was published.
  void at_end(std::function<void()> listener) { end_listener_ = std::move(listener); }

  // What the control socket asks for; all on the reactor's thread.

  /// Stops every vCPU between two instructions; `done` runs when they stand, or at once where they
  /// do. The machine's end drops it.
  void pause(std::function<void()> done);
  /// False where it is not paused.
  bool resume();
  /// Saves the machine into a file, which is on its disk when `done` runs; the machine's end drops
  /// it. A machine that was paused stays so. Errors: kConfig where it cannot be now.
  Result<> snapshot(SnapshotRequest request, SnapshotDone done);
  /// The machine that stands by goes on as the one in `file`, which errors call `path`; without a
  /// file, as the one that it was prepared from. `done` runs when the guest does, or when that came
  /// to nothing, which ends the machine. Errors: what is wrong with the file; it stands by still.
  Result<> load(std::string path, UniqueFd file, LoadDone done);
  /// The guest's power button, and an orderly end of the process when it has not shut down after
  /// `timeout_ns`. A second call does not wait for the guest.
  void stop(std::uint64_t timeout_ns);
  /// The end, without asking the guest.
  void kill();
  /// False where the guest has not enabled its keyboard.
  bool send_ctrl_alt_del() { return devices_->send_ctrl_alt_del(); }
  /// A non-maskable interrupt for every vCPU.
  Result<> inject_nmi();

  /// What the machine counts; with a control socket or metrics.path only.
  std::vector<Metric> metrics() const;

  MachineState state() const { return state_; }
  /// From snapshot() until its `done`.
  bool saving() const { return snapshot_ != nullptr; }
  bool ready() const { return ready_; }
  std::uint32_t restarts() const { return restarts_; }
  /// As it is now: verbs change it.
  const Config& config() const { return config_; }
  Config& config() { return config_; }
  /// What verbs may open by its path.
  const AllowedPaths& allowed_paths() const { return allowed_paths_; }
  const Timeline& timeline() const { return timeline_; }
  const GuestMemory& memory() const { return *memory_; }
  const std::vector<std::unique_ptr<Vcpu>>& vcpus() const { return vcpus_; }
  const KvmStats& kvm_stats() const { return vm_stats_; }
  DeviceSet& devices() { return *devices_; }
  Reactor& reactor() { return *reactor_; }
  Events& events() { return events_; }
  Supervisor& supervisor() { return *supervisor_; }

 private:
  /// How the machine ended; the first reason counts.
  enum class End : std::uint8_t {
    kNone,
    kPowerOff,
    kReset,
    kPanic,
    kCrash,
    kHostMemory,
    kStopped,
    kNotReady,
    kFailed,  // failure_ says what of ours
  };

  Machine(const Config& config, Timeline& timeline);

  Result<SnapshotJob::Kind> kind_of(const SnapshotRequest& request) const;
  void forget_changes();
  void on_precopied(Result<> copied);
  void halt_for_snapshot();
  void capture_snapshot();
  void on_snapshot_timeout();
  void on_captured(Result<> captured);
  void resume_devices();
  void on_devices_resumed();
  void on_snapshot_done();
  void begin_pause();
  void begin_stop();

  Result<> open_inputs();
  void keep_made_files();
  Result<> create_vm(RestoreSource* source);
  Result<> read_memory(RestoreSource& source);
  Result<> create_devices();
  Result<> load_guest();
  Result<> create_vcpus();
  Result<> setup_vcpus();
  Result<> restore_state(RestoreSource& source);
  Result<> check_disks_of(const RestoreSource& source, std::span<const WrittenDisk> disks) const;
  Result<> restore_devices();
  Result<> wait_for_load();
  Result<> take_over(RestoreSource& source);
  bool counts_exits() const;
  arch::CpuConfig cpu_config() const;
  Result<EntryPoint> write_tables();
  Result<> setup_boot_vcpu(const EntryPoint& entry);
  SandboxPaths sandbox_paths(std::span<const int> further) const;
  Result<> serve();
  Result<> start_vcpus();
  Result<> wait_for_vcpus();
  Result<> start_pool();
  Result<> start_feeder();
  void on_memory_there();
  void finish_devices();

  void set_state(MachineState state);
  void saw_readiness();
  void become_ready();
  void on_ready_timeout();
  void on_vcpu_paused();
  void on_reset();
  void on_devices_quiet();
  Result<> restart();
  void halt_vcpus();
  void stop_vcpus();
  void on_signal(int signal);
  void give_up_waiting();
  void end(End how);
  void look_for_lost_memory();
  void announce_end();
  int exit_status();
  Result<> write_reports();
  Result<> write_metrics();
  Result<> write_working_set();

  // MachineEvents, on vCPU threads.
  void power_off() override { end(End::kPowerOff); }
  void reset() override;
  void panicked() override { end(End::kPanic); }
  void mark(std::uint8_t number) override;
  // VcpuObserver, on vCPU threads.
  Result<> vcpu_thread_begins(unsigned index) override;
  void vcpu_first_entry(unsigned index) override;
  void vcpu_paused(unsigned index) override;
  void vcpu_faults_in_vain(unsigned index) override;
  void vcpu_ended(unsigned index, VcpuEnd how, const std::string& what) override;
  // ConsoleListener, on the reactor.
  void console_quit() override { end(End::kStopped); }
  // ReadyTextListener, on vCPU threads.
  void ready_text_seen() override { saw_readiness(); }

  /// What a machine has while it stands by.
  struct Standby {
    PreparedMachine prepared;
    std::vector<WrittenDisk> disks;
    Result<UniqueFd> userfaultfd;
    bool loaded = false;
  };

  Config config_;
  Timeline& timeline_;
  Events events_;
  Limits limits_;
  PidFile pid_file_;
  AllowedPaths allowed_paths_;
  std::optional<ReportFile> timeline_file_;
  std::optional<ReportFile> profile_file_;
  std::optional<ReportFile> metrics_file_;
  std::optional<ReportFile> working_set_file_;
  std::string recorded_path_;     // its path; empty: nothing is recorded
  std::optional<Error> failure_;  // of End::kFailed
  std::vector<arch::MmioDevice> mmio_places_;
  std::vector<OpenDisk> disks_;       // until the devices have them
  std::vector<MadeFile> made_files_;  // until the machine is built

  std::atomic<End> end_ = End::kNone;
  std::atomic<std::uint32_t> phase_ = 0;  // guest marks so far
  std::atomic<bool> ready_seen_ = false;  // what makes it ready has happened
  // Of the reactor's thread.
  MachineState state_ = MachineState::kStarting;
  bool ready_ = false;
  bool restored_ = false;  // devices stand still until it runs
  bool stop_requested_ = false;
  bool restarting_ = false;
  bool devices_quiet_ = false;  // for the end
  bool hung_ = false;           // a disk does not answer
  bool runs_after_restart_ = false;
  std::uint64_t stop_timeout_ns_ = kStopTimeoutNs;
  std::uint32_t restarts_ = 0;
  std::vector<std::function<void()>> pause_waiters_;
  std::function<void()> start_listener_;
  std::function<void()> end_listener_;
  std::unique_ptr<Standby> standby_;  // until it has its snapshot
  LoadDone load_done_;
  // What a diff can go by: the log goes on since …, memory was mapped from …, and since then these
  // were taken.
  std::optional<SnapshotUuid> last_snapshot_;
  std::optional<SnapshotUuid> logged_since_;
  std::optional<SnapshotUuid> mapped_from_;
  std::vector<SnapshotUuid> taken_;
  SnapshotDone snapshot_done_;
  AfterSnapshot snapshot_then_ = AfterSnapshot::kResume;
  Result<> snapshot_result_;
  bool snapshot_waits_ = false;  // for the devices to stand still
  bool snapshot_void_ = false;   // memory is another one than what was taken of it
  bool ran_before_snapshot_ = false;
  bool devices_still_ = false;       // as the snapshot left them
  bool devices_resuming_ = false;    // they begin to serve again; the vCPUs follow
  bool disks_fit_snapshot_ = false;  // nothing was written since
  bool stop_after_snapshot_ = false;
  std::uint64_t snapshot_begun_ns_ = 0;
  std::uint64_t snapshot_pause_ns_ = 0;
  UniqueFd memory_file_;  // behind guest memory, where there is one, and how long it is
  std::uint64_t memory_file_bytes_ = 0;
  std::string lost_page_;  // what is said of a page that the host cannot give
  std::string directory_;  // where relative paths of the configuration begin
  std::vector<std::uint32_t> cpu_ids_;
  std::vector<int> vcpu_fds_;
  std::array<std::uint8_t, 16> uuid_ = {};

  // Destroyed from the last to the first: vCPU threads touch devices and memory, devices use the
  // reactor and KVM, KVM maps the memory.
  std::unique_ptr<GuestBoot> boot_;
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<PageFeeder> feeder_;  // while pages of a snapshot are still to come
  std::unique_ptr<KvmVm> vm_;
  std::unique_ptr<ChangeLog> changes_;
  KvmStats vm_stats_;
  UniqueFd statm_;  // /proc/self/statm, where there is one
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<IoThreads> io_threads_;
  std::unique_ptr<Offload> offload_;  // none where nobody can ask for anything
  UniqueFd pagemap_;                  // /proc/self/pagemap, where there is one
  std::unique_ptr<SignalWatch> signals_;
  std::unique_ptr<Supervisor> supervisor_;
  std::unique_ptr<Timer> stop_timer_;
  std::unique_ptr<Timer> ready_timer_;
  std::unique_ptr<Timer> snapshot_timer_;
  Task ready_task_;
  Task paused_task_;
  Task reset_task_;
  Task devices_quiet_task_;
  Task devices_resumed_task_;
  Task snapshot_done_task_;
  Task memory_there_task_;
  std::unique_ptr<DeviceSet> devices_;
  std::unique_ptr<ReadyText> ready_text_;  // none unless text makes the VM ready
  std::unique_ptr<Profile> profile_;       // none unless asked for
  std::unique_ptr<arch::CpuModel> cpu_model_;
  std::unique_ptr<arch::ResetState> reset_state_;  // none unless the machine can restart
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::unique_ptr<SnapshotJob> snapshot_;  // while one is on its way
};

}  // namespace vireo
