// SPDX-License-Identifier: Apache-2.0
#include "src/kvm/fault_watch.h"

#include <cerrno>
#include <csignal>
#include <ctime>
#include <utility>

#include <unistd.h>

namespace vireo {

namespace {

constexpr long kInterval = 100'000'000;  // ns of the thread's processor time

}  // namespace

Result<> FaultWatch::start(int fd, int signal) {
  vcpu_ = fd;
  sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = signal;
  event._sigev_un._tid = ::gettid();
  timer_t timer = nullptr;  // the process's, and gone with it: without its thread it never expires
  const itimerspec every = {.it_interval = {.tv_sec = 0, .tv_nsec = kInterval},
                            .it_value = {.tv_sec = 0, .tv_nsec = kInterval}};
  if (::timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) < 0 ||
      ::timer_settime(timer, 0, &every, nullptr) < 0) {
    return fail_errno(errno, "a timer of a vCPU's processor time");
  }
  return {};
}

bool FaultWatch::faults_in_vain() {
  const Result<Faults> now = count();
  if (!now) {
    return false;
  }
  const std::uint64_t taken = now->taken - last_.taken;
  const std::uint64_t settled = now->settled - last_.settled;
  last_ = *now;
  return taken > settled && taken - settled >= wanted_ && taken - settled > settled;
}

Result<FaultWatch::Faults> FaultWatch::count() {
  if (!std::exchange(open_, true)) {
    TRY(stats_.open(vcpu_));
  }
  TRY_ASSIGN(const std::vector<KvmCounter> counters, stats_.read());
  Faults faults;
  for (const KvmCounter& counter : counters) {
    if (counter.name == "pf_taken") {
      faults.taken = counter.value;
    } else if (counter.name == "pf_fixed" || counter.name == "pf_emulate" ||
               counter.name == "pf_spurious" || counter.name == "pf_fast") {
      faults.settled += counter.value;
    }
  }
  return faults;
}

}  // namespace vireo
