// SPDX-License-Identifier: Apache-2.0
// A vCPU that faults on a page again and again because its file cannot be read. KVM brings such a
// page in the background (async page faults) and lets the guest try anew however that ended:
// while the guest takes interrupts, KVM_RUN never returns EFAULT, and its vCPU spins for good.
//
// So each vCPU's thread gets a signal for every 100 ms of processor time that it takes, none while
// it is idle, and then compares how many faults KVM has taken with how many came to something.
#pragma once

#include <cstdint>

#include "src/base/error.h"
#include "src/kvm/kvm_stats.h"

namespace vireo {

class FaultWatch {
 public:
  /// Has `signal` sent to the calling thread, that of the vCPU `fd`, from now on. Errors: kSystem.
  Result<> start(int fd, int signal);

  /// After the signal: whether most faults since it was asked last came to nothing, and many did.
  /// False where KVM does not count them (before Linux 5.19). The vCPU's thread.
  bool faults_in_vain();
  /// Each page could be had, whatever it looked like: many more are wanted the next time.
  void was_wrong() { wanted_ *= 2; }

 private:
  struct Faults {
    std::uint64_t taken = 0;
    std::uint64_t settled = 0;
  };

  Result<Faults> count();

  int vcpu_ = -1;
  bool open_ = false;
  KvmStats stats_;
  Faults last_;
  std::uint64_t wanted_ = 200;
};

}  // namespace vireo
