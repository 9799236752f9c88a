// SPDX-License-Identifier: Apache-2.0
// When a vCPU's thread is told to look at its faults. That it finds some: linux_seal_test.py.
#include "src/kvm/fault_watch.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <ctime>
#include <thread>

#include "tests/support/catch.h"

namespace vireo {
namespace {

std::atomic<int> g_signals{0};  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

std::uint64_t thread_ns() {
  timespec time = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(time.tv_nsec);
}

TEST_CASE("A thread that works is told of its time, and one that waits is not") {
  const int signal = SIGRTMIN + 1;
  struct sigaction action = {};
  action.sa_handler = [](int /*signal*/) { ++g_signals; };
  REQUIRE(::sigaction(signal, &action, nullptr) == 0);
  int idle = -1;
  int busy = 0;
  std::thread vcpu([&] {
    FaultWatch watch;
    CHECK(watch.start(-1, signal));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    idle = g_signals;
    while (thread_ns() < 500'000'000) {
    }
    busy = g_signals;
  });
  vcpu.join();
  CHECK(idle == 0);
  CHECK(busy >= 2);
}

TEST_CASE("Where the faults cannot be counted none is in vain") {
  FaultWatch watch;
  CHECK_FALSE(watch.faults_in_vain());
}

}  // namespace
}  // namespace vireo
