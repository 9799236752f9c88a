// SPDX-License-Identifier: Apache-2.0
#include "src/doctor_speed.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <string>
#include <thread>

#include "src/base/log.h"
#include "src/bus/bus.h"
#include "src/kvm/vcpu.h"
#include "src/kvm/vm.h"
#include "src/memory/guest_memory.h"

namespace vireo {

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
/// Processor time that a measurement takes.
constexpr std::uint64_t kMeasuredNs = 10'000'000;
/// On a busy host that processor time may be long in coming, and a slow host spends the first of
/// it on the way into the guest.
constexpr std::uint64_t kPatienceNs = 3 * kSecond;
/// Fewer tell the cost of the way in and not the guest's speed.
constexpr std::uint64_t kFewestInstructions = 10'000;

/// Of all threads; what others on this host get meanwhile does not count.
std::uint64_t cpu_time_ns() {
  timespec time = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * kSecond +
         static_cast<std::uint64_t>(time.tv_nsec);
}

std::uint64_t per_second(std::uint64_t instructions, std::uint64_t elapsed_ns) {
  return instructions * 1'000'000 / std::max<std::uint64_t>(elapsed_ns / 1000, 1);
}

/// Remembers how the guest ended, which this one should not. Read once the vCPU has stopped.
class EndObserver final : public VcpuObserver {
 public:
  Result<> vcpu_thread_begins(unsigned /*index*/) override { return {}; }
  void vcpu_first_entry(unsigned /*index*/) override {}
  void vcpu_paused(unsigned /*index*/) override {}
  void vcpu_faults_in_vain(unsigned /*index*/) override {}
  void vcpu_ended(unsigned /*index*/, VcpuEnd /*end*/, const std::string& what) override {
    what_ = what;
    ended_.store(true, std::memory_order_release);
  }
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  const std::string& what() const { return what_; }

 private:
  std::string what_;
  std::atomic<bool> ended_ = false;
};

void wait_measured(std::uint64_t start_cpu_ns, std::uint64_t deadline_ns,
                   const EndObserver& observer) {
  while (!observer.ended() && cpu_time_ns() - start_cpu_ns < kMeasuredNs &&
         monotonic_ns() < deadline_ns) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

Result<std::uint64_t> measure_guest_speed(arch::GuestPrivilege privilege) {
  const std::array ranges = {*GuestRange::create(GuestAddress(0), arch::kCountingMemory)};
  TRY_ASSIGN(const std::unique_ptr<GuestMemory> memory, GuestMemory::create(ranges, {}));
  // What a VM needs beside is looked at by checks of its own; counting needs little.
  TRY_ASSIGN(const std::unique_ptr<KvmVm> vm, KvmVm::create("/dev/kvm", {}));
  TRY(vm->add_memory(*memory));
  TRY_ASSIGN(const std::unique_ptr<arch::CpuModel> model, arch::make_cpu_model(*vm, {}));
  TRY(prepare_vcpu_signal());

  EndObserver observer;
  Bus nothing;
  nothing.freeze();
  const std::atomic<std::uint32_t> phase = 0;
  TRY_ASSIGN(
      const std::unique_ptr<Vcpu> vcpu,
      Vcpu::create(*vm, 0, 0,
                   {.ports = nothing, .mmio = nothing, .observer = observer, .phase = phase}));
  TRY(arch::setup_vcpu(vcpu->fd(), *model, 0));
  TRY(arch::setup_counting_vcpu(vcpu->fd(), *memory, privilege));
  TRY(vcpu->start());
  TRY(vcpu->wait_started());

  const std::uint64_t deadline_ns = monotonic_ns() + kPatienceNs;
  std::uint64_t counted = 0;
  std::uint64_t instructions = 0;
  std::uint64_t elapsed_ns = 0;
  while (instructions < kFewestInstructions && monotonic_ns() < deadline_ns) {
    const std::uint64_t start_ns = cpu_time_ns();
    vcpu->resume();
    wait_measured(start_ns, deadline_ns, observer);
    vcpu->pause();
    vcpu->wait_paused();
    elapsed_ns = cpu_time_ns() - start_ns;
    if (observer.ended()) {
      return fail(ErrorCode::kNoKvm, observer.what());
    }
    TRY_ASSIGN(const std::uint64_t now, arch::counted_instructions(vcpu->fd()));
    instructions = now - counted;
    counted = now;
  }
  return per_second(instructions, elapsed_ns);
}

std::uint64_t measure_host_speed() {
  constexpr std::uint64_t kBatch = 200'000;
  std::uint64_t instructions = 0;
  std::uint64_t elapsed_ns = 0;
  const std::uint64_t start_ns = cpu_time_ns();
  while (elapsed_ns < kMeasuredNs) {
    arch::count_on_host(kBatch);
    instructions += kBatch;
    elapsed_ns = cpu_time_ns() - start_ns;
  }
  return per_second(instructions, elapsed_ns);
}

}  // namespace vireo
