// SPDX-License-Identifier: Apache-2.0
// Which pages of guest memory have changed: by the guest, as KVM notes it, and by devices, as
// GuestMemory is told. What a snapshot that is taken while the guest runs goes by, and a diff.
//
// Owned by Machine. One thread at a time.
#pragma once

#include "src/base/error.h"
#include "src/kvm/vm.h"
#include "src/memory/guest_memory.h"
#include "src/memory/page_set.h"

namespace vireo {

class ChangeLog {
 public:
  /// Both outlive it.
  ChangeLog(KvmVm& vm, GuestMemory& memory)
      : vm_(vm), memory_(memory), given_back_(memory.size() / 4096) {}

  bool running() const { return running_; }
  /// From here on it knows what changes.
  Result<> start();
  void stop();
  /// Adds to `pages` what has changed since start() or the take() before, while it runs.
  Result<> take(PageSet& pages);
  /// What was taken in vain: the next take() has it, too.
  void give_back(const PageSet& pages) { given_back_.add_all_of(pages); }

 private:
  KvmVm& vm_;
  GuestMemory& memory_;
  PageSet given_back_;
  bool running_ = false;
};

}  // namespace vireo
