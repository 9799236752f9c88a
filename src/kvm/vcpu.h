// SPDX-License-Identifier: Apache-2.0
// One virtual processor: its KVM descriptor and the thread that runs it.
//
// Owned by Machine and destroyed before everything that its thread touches. The thread is made by
// start(), waits in the paused state, and runs the guest between resume() and pause(). Exits go to
// the two buses; how the guest ended goes to the VcpuObserver.
//
//      start()          resume()                 pause()
//   ───────────▶ paused ────────▶ running ──────────────────▶ paused        stop()
//                                    └── the guest ended ──▶ finished ◀─────────────
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/bus/bus.h"
#include "src/kvm/exit_stats.h"
#include "src/kvm/fault_watch.h"
#include "src/kvm/kvm_stats.h"
#include "src/kvm/vm.h"

struct kvm_run;

namespace vireo {

/// Why a vCPU can run no further.
enum class VcpuEnd : std::uint8_t {
  kTripleFault,  ///< KVM_EXIT_SHUTDOWN
  kKvmError,     ///< KVM cannot run the guest on: internal error, failed entry, unknown exit
  kHostMemory,   ///< a page of guest memory could not be had from the host
};

class VcpuObserver {
 public:
  virtual ~VcpuObserver() = default;
  /// The first thing on each vCPU's thread: its processors, its sandbox. An error is start()'s.
  virtual Result<> vcpu_thread_begins(unsigned index) = 0;
  /// Just before the guest's first instruction. On the vCPU's thread.
  virtual void vcpu_first_entry(unsigned index) = 0;
  /// The vCPU stands in the paused state, or has finished. On the vCPU's thread.
  virtual void vcpu_paused(unsigned index) = 0;
  /// KVM faults again and again, as it does where a page of guest memory cannot be had: wants each
  /// touched by this process, whose end that is then. On the vCPU's thread, which may wait for the
  /// host's disk in it.
  virtual void vcpu_faults_in_vain(unsigned index) = 0;
  /// The vCPU has finished; `what` is one line for people. On the vCPU's thread.
  virtual void vcpu_ended(unsigned index, VcpuEnd end, const std::string& what) = 0;
};

/// What all vCPUs of a machine share.
struct VcpuContext {
  const Bus& ports;
  const Bus& mmio;
  VcpuObserver& observer;
  /// Guest marks so far: the phase under which the exit profile counts.
  const std::atomic<std::uint32_t>& phase;
  /// Count exits and their time.
  bool count_exits = false;
};

class Vcpu {
 public:
  /// Creates vCPU `index`, known to the guest by `id`; registers are set by arch, through fd(),
  /// before start().
  static Result<std::unique_ptr<Vcpu>> create(const KvmVm& vm, unsigned index, std::uint32_t id,
                                              const VcpuContext& context);
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;
  ~Vcpu();

  int fd() const { return fd_.get(); }
  unsigned index() const { return index_; }

  /// Makes the thread, paused. Main thread, once.
  Result<> start();
  /// Waits until the thread has begun; its observer's error, if it had one.
  Result<> wait_started();
  void resume();
  /// Asks for the paused state; wait_paused() blocks until it is reached (or the vCPU finished).
  /// By then no PIO or MMIO access is pending in KVM, as saving the registers needs. Any thread but
  /// this vCPU's.
  void pause();
  void wait_paused();
  /// Whether it stands still: paused, or finished. Any thread.
  bool is_paused();
  /// Ends and joins the thread. Any thread but this vCPU's.
  void stop();

  /// What its exits cost, or nullptr where they are not counted. Any thread.
  const ExitStats* exit_stats() const { return stats_.get(); }
  /// KVM's own counters of this vCPU; only where exits are counted.
  const KvmStats& kvm_stats() const { return kvm_stats_; }

 private:
  enum class State : std::uint8_t { kPaused, kRunning, kFinished };

  Vcpu(unsigned index, const VcpuContext& context) : index_(index), context_(context) {}

  void thread_main();
  bool wait_for_work();
  void run_until_wanted();
  bool run_once();
  void look_at_faults();
  bool handle_exit();
  void handle_io();
  void handle_mmio();
  void handle_msr();
  void complete_pending_access();
  void end(VcpuEnd end, const std::string& what);
  void kick(State wanted);
  void record_exit(std::uint64_t exited_ns);

  const unsigned index_;
  const VcpuContext context_;
  UniqueFd fd_;
  Mapping run_area_;
  kvm_run* run_ = nullptr;
  std::unique_ptr<ExitStats> stats_;
  KvmStats kvm_stats_;
  std::thread thread_;
  FaultWatch fault_watch_;            // this thread only
  bool entered_ = false;              // this thread only
  std::optional<Error> begin_error_;  // the observer's; under mutex_
  bool begun_ = false;                // under mutex_

  // wanted_ is what others ask for, state_ what is; both change under mutex_, wanted_ is also
  // looked at without it after each exit.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<State> wanted_ = State::kPaused;
  State state_ = State::kPaused;
};

/// Installs the (empty) handler of the signal that gets a vCPU thread out of KVM_RUN. Main thread,
/// before any vCPU starts.
Result<> prepare_vcpu_signal();

}  // namespace vireo
