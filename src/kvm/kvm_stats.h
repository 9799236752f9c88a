// SPDX-License-Identifier: Apache-2.0
// KVM's own counters of a vCPU or a VM: the exits that it answered inside the kernel and that
// KVM_RUN therefore never shows (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

struct KvmCounter {
  std::string name;         ///< KVM's word for it, such as "io_exits"
  std::uint64_t value = 0;  ///< in KVM's unit for this counter
};

class KvmStats {
 public:
  /// Opens the counters of `fd`, a VM or a vCPU, and reads what they are called. Main thread.
  Result<> open(int fd);
  /// The counters that are not zero, in KVM's order; histograms are left out. Any thread.
  Result<std::vector<KvmCounter>> read() const;

 private:
  struct Descriptor {
    std::string name;
    std::uint32_t offset = 0;  // of the value, in the data
  };

  UniqueFd fd_;
  std::uint32_t data_ = 0;  // where it is in the file
  std::size_t values_ = 0;  // up to the last of ours
  std::vector<Descriptor> descriptors_;
};

}  // namespace vireo
