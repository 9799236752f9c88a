// SPDX-License-Identifier: Apache-2.0
#include "src/kvm/vcpu.h"

#include <cerrno>
#include <csignal>
#include <system_error>
#include <utility>

#include <pthread.h>
#include <sys/mman.h>

#include <fmt/core.h>

#include "src/base/log.h"
#include "src/kvm/uapi.h"

namespace vireo {

namespace {

int kick_signal() {
  return SIGRTMIN;
}

void ignore_kick(int /*signal*/) {}

/// One line about an exit that KVM itself gave up on.
std::string describe_kvm_error(const kvm_run& run) {
  switch (run.exit_reason) {
    case KVM_EXIT_INTERNAL_ERROR: {
      std::string text = fmt::format("KVM_EXIT_INTERNAL_ERROR, suberror {}", run.internal.suberror);
      if (run.internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
        text += " (this KVM met a guest instruction that it would have to emulate and cannot)";
      }
      return text;
    }
    case KVM_EXIT_FAIL_ENTRY:
      return fmt::format("KVM_EXIT_FAIL_ENTRY, hardware reason {:#x}",
                         run.fail_entry.hardware_entry_failure_reason);
    default:
      return fmt::format("unexpected KVM exit {}", run.exit_reason);
  }
}

}  // namespace

Result<> prepare_vcpu_signal() {
  struct sigaction action = {};
  action.sa_handler = ignore_kick;
  action.sa_flags = SA_RESTART;  // KVM_RUN returns EINTR all the same, and no other call has to
  if (::sigaction(kick_signal(), &action, nullptr) < 0) {
    return fail_errno(errno, "sigaction for the vCPU signal");
  }
  return {};
}

Result<std::unique_ptr<Vcpu>> Vcpu::create(const KvmVm& vm, unsigned index, std::uint32_t id,
                                           const VcpuContext& context) {
  auto vcpu = std::unique_ptr<Vcpu>(new Vcpu(index, context));
  TRY_ASSIGN(const int fd, try_ioctl(vm.fd(), KVM_CREATE_VCPU, static_cast<unsigned long>(id),
                                     fmt::format("KVM_CREATE_VCPU {}", index)));
  vcpu->fd_ = UniqueFd(fd);
  TRY_ASSIGN(vcpu->run_area_, Mapping::create(vm.run_size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                                              0, "mapping kvm_run"));
  vcpu->run_ = static_cast<kvm_run*>(static_cast<void*>(vcpu->run_area_.data()));
  if (context.count_exits) {
    vcpu->stats_ = std::make_unique<ExitStats>();
    TRY(vcpu->kvm_stats_.open(fd));
  }
  return vcpu;
}

Vcpu::~Vcpu() {
  stop();
}

Result<> Vcpu::start() {
  try {
    thread_ = std::thread(&Vcpu::thread_main, this);
  } catch (const std::system_error& error) {
    return fail(ErrorCode::kSystem,
                fmt::format("starting the thread of vCPU {}: {}", index_, error.what()));
  }
  return {};
}

Result<> Vcpu::wait_started() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return begun_; });
  if (begin_error_) {
    return std::unexpected(*begin_error_);
  }
  return {};
}

void Vcpu::resume() {
  const std::scoped_lock lock(mutex_);
  if (wanted_ == State::kPaused) {
    wanted_ = State::kRunning;
    changed_.notify_all();
  }
}

void Vcpu::pause() {
  kick(State::kPaused);
}

void Vcpu::wait_paused() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return state_ != State::kRunning; });
}

bool Vcpu::is_paused() {
  const std::scoped_lock lock(mutex_);
  return state_ != State::kRunning;
}

void Vcpu::stop() {
  if (!thread_.joinable()) {
    return;
  }
  kick(State::kFinished);
  thread_.join();
}

void Vcpu::kick(State wanted) {
  const std::scoped_lock lock(mutex_);
  if (wanted_ == State::kFinished) {
    return;
  }
  wanted_ = wanted;
  // First the flag, then the signal: whichever of them finds the thread outside KVM_RUN, the next
  // KVM_RUN returns at once (Documentation/virt/kvm/api.rst, immediate_exit).
  std::atomic_ref(run_->immediate_exit).store(1, std::memory_order_release);
  changed_.notify_all();
  if (thread_.joinable()) {
    ::pthread_kill(thread_.native_handle(), kick_signal());
  }
}

void Vcpu::thread_main() {
  const std::string name = fmt::format("vireo-vcpu{}", index_);
  ::pthread_setname_np(::pthread_self(), name.c_str());
  {
    Result<> begun = fault_watch_.start(fd_.get(), kick_signal());
    if (begun) {
      begun = context_.observer.vcpu_thread_begins(index_);
    }
    const std::scoped_lock lock(mutex_);
    begun_ = true;
    if (!begun) {
      begin_error_ = std::move(begun).error();
      wanted_ = State::kFinished;  // even where it was told to run already
    }
    changed_.notify_all();
  }
  while (wait_for_work()) {
    run_until_wanted();
    complete_pending_access();
  }
  {
    const std::scoped_lock lock(mutex_);
    state_ = State::kFinished;
    changed_.notify_all();
  }
  context_.observer.vcpu_paused(index_);
}

/// Waits in the paused state; false when the thread shall end.
bool Vcpu::wait_for_work() {
  std::unique_lock lock(mutex_);
  state_ = State::kPaused;
  changed_.notify_all();
  lock.unlock();
  context_.observer.vcpu_paused(index_);
  lock.lock();
  changed_.wait(lock, [this] { return wanted_ != State::kPaused; });
  if (wanted_ == State::kFinished) {
    return false;
  }
  state_ = State::kRunning;
  std::atomic_ref(run_->immediate_exit).store(0, std::memory_order_release);
  lock.unlock();
  // So that the guest's watchdogs do not take the pause for a lockup, nor the time that a snapshot
  // has lain there; EINVAL without kvmclock, as before the first instruction.
  ::ioctl(fd_.get(), KVM_KVMCLOCK_CTRL, 0UL);
  return true;
}

void Vcpu::run_until_wanted() {
  if (!std::exchange(entered_, true)) {
    context_.observer.vcpu_first_entry(index_);
  }
  while (wanted_.load(std::memory_order_acquire) == State::kRunning) {
    if (!run_once()) {
      const std::scoped_lock lock(mutex_);
      wanted_ = State::kFinished;
      return;
    }
  }
}

/// One KVM_RUN and the handling of its exit; false when the vCPU can run no further.
bool Vcpu::run_once() {
  const std::uint64_t entered_ns = stats_ ? monotonic_ns() : 0;
  const int result = ::ioctl(fd_.get(), KVM_RUN, 0UL);
  const int error = errno;
  const std::uint64_t exited_ns = stats_ ? monotonic_ns() : 0;
  if (stats_) {
    stats_->add_run(exited_ns - entered_ns);
  }
  if (result < 0) {
    switch (error) {
      case EINTR:
        look_at_faults();
        return true;
      case EAGAIN:
        return true;
      case EFAULT:
      case EHWPOISON:
        end(VcpuEnd::kHostMemory, Error::from_errno(error, "KVM_RUN").message());
        return false;
      default:
        end(VcpuEnd::kKvmError, Error::from_errno(error, "KVM_RUN").message());
        return false;
    }
  }
  const bool goes_on = handle_exit();
  if (stats_) {
    record_exit(exited_ns);
  }
  return goes_on;
}

/// After a signal, which is the watch's where nobody wants anything.
void Vcpu::look_at_faults() {
  if (wanted_.load(std::memory_order_acquire) == State::kRunning && fault_watch_.faults_in_vain()) {
    context_.observer.vcpu_faults_in_vain(index_);
    fault_watch_.was_wrong();
  }
}

bool Vcpu::handle_exit() {
  switch (run_->exit_reason) {
    case KVM_EXIT_IO:
      handle_io();
      return true;
    case KVM_EXIT_MMIO:
      handle_mmio();
      return true;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
      handle_msr();
      return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
      return true;
    case KVM_EXIT_SHUTDOWN:
      end(VcpuEnd::kTripleFault, "triple fault");
      return false;
    default:
      end(VcpuEnd::kKvmError, describe_kvm_error(*run_));
      return false;
  }
}

void Vcpu::handle_io() {
  const auto& io = run_->io;
  // KVM's own numbers, not the guest's: size is 1, 2 or 4, and count elements fit into the page.
  std::byte* data = run_area_.data() + io.data_offset;
  for (std::uint32_t i = 0; i < io.count; ++i, data += io.size) {
    if (io.direction == KVM_EXIT_IO_OUT) {
      context_.ports.write(io.port, std::span<const std::byte>(data, io.size));
    } else {
      context_.ports.read(io.port, std::span(data, io.size));
    }
  }
}

void Vcpu::handle_mmio() {
  auto& mmio = run_->mmio;
  const std::span<std::byte> data = std::as_writable_bytes(std::span(mmio.data)).first(mmio.len);
  if (mmio.is_write != 0) {
    context_.mmio.write(mmio.phys_addr, data);
  } else {
    context_.mmio.read(mmio.phys_addr, data);
  }
}

/// An MSR that KVM does not know, seen only while profiling: answered as KVM itself does, by #GP.
void Vcpu::handle_msr() {
  run_->msr.error = 1;
}

/// KVM completes a port or MMIO access only at the next KVM_RUN; with immediate_exit it does that
/// and returns, so that nothing is pending when the registers are read
/// (Documentation/virt/kvm/api.rst, the note on KVM_EXIT_IO and KVM_EXIT_MMIO).
void Vcpu::complete_pending_access() {
  std::atomic_ref(run_->immediate_exit).store(1, std::memory_order_release);
  ::ioctl(fd_.get(), KVM_RUN, 0UL);
}

void Vcpu::end(VcpuEnd end, const std::string& what) {
  context_.observer.vcpu_ended(index_, end, what);
}

void Vcpu::record_exit(std::uint64_t exited_ns) {
  bool write = false;
  std::uint64_t detail = 0;
  switch (run_->exit_reason) {
    case KVM_EXIT_IO:
      write = run_->io.direction == KVM_EXIT_IO_OUT;
      detail = run_->io.port;
      break;
    case KVM_EXIT_MMIO:
      write = run_->mmio.is_write != 0;
      detail = run_->mmio.phys_addr;
      break;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
      write = run_->exit_reason == KVM_EXIT_X86_WRMSR;
      detail = run_->msr.index;
      break;
    default:
      break;
  }
  stats_->add(context_.phase.load(std::memory_order_relaxed), run_->exit_reason, write, detail,
              monotonic_ns() - exited_ns);
}

}  // namespace vireo
