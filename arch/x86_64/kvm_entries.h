// SPDX-License-Identifier: Apache-2.0
// KVM's structures that end in an array: kvm_cpuid2, kvm_msrs.
#pragma once

#include <cstddef>
#include <vector>

#include "src/kvm/uapi.h"

namespace vireo::arch {

/// A header of KVM's with room for `entries` behind it, all zero.
template <typename Header, typename Entry>
class HeaderAndEntries {
 public:
  explicit HeaderAndEntries(std::size_t entries)
      : bytes_(sizeof(Header) + entries * sizeof(Entry)) {}
  Header& header() { return *static_cast<Header*>(static_cast<void*>(bytes_.data())); }
  Entry* entries() { return header().entries; }

 private:
  std::vector<std::byte> bytes_;
};
using CpuidBuffer = HeaderAndEntries<kvm_cpuid2, kvm_cpuid_entry2>;
using MsrBuffer = HeaderAndEntries<kvm_msrs, kvm_msr_entry>;

}  // namespace vireo::arch
