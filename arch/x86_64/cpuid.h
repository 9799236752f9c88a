// SPDX-License-Identifier: Apache-2.0
// From what KVM supports to what the guest sees: pure functions on a table of CPUID entries.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "arch/arch.h"
#include "arch/x86_64/cpu_features.h"
#include "src/kvm/uapi.h"

namespace vireo::arch {

using CpuidTable = std::vector<kvm_cpuid_entry2>;

/// The entry of a leaf, or nullptr.
const kvm_cpuid_entry2* find_leaf(const CpuidTable& table, std::uint32_t leaf,
                                  std::uint32_t subleaf = 0);
kvm_cpuid_entry2* find_leaf(CpuidTable& table, std::uint32_t leaf, std::uint32_t subleaf = 0);

/// What host and KVM are beyond their CPUID table.
struct CpuidEnvironment {
  std::uint32_t tsc_khz = 0;  ///< 0: unknown
  bool tsc_deadline = false;  ///< KVM_CAP_TSC_DEADLINE_TIMER
};

/// Makes the table that all vCPUs share out of KVM's supported one: topology, x2APIC, TSC deadline,
/// clock frequencies, nested virtualization hidden, the feature masks applied.
Result<> make_guest_cpuid(CpuidTable& table, const CpuConfig& config,
                          const CpuidEnvironment& environment);

/// Whether the guest may run VMs of its own.
bool shows_nested_virtualization(const CpuidTable& table);

/// Takes the features away that `features` masks, in a table that a guest had before.
void mask_features(CpuidTable& table, const std::vector<std::string>& features);

/// What a guest that knows `wanted` would miss where vCPUs have `offered`: the names of features,
/// "leaf 0x7.0 edx bit 5" of those that have none, "the processor of another vendor".
std::vector<std::string> missing_features(const CpuidTable& wanted, const CpuidTable& offered);

/// Writes the numbers that differ between vCPUs.
void set_cpu_id(CpuidTable& table, const CpuTopology& topology, std::uint32_t id);

}  // namespace vireo::arch
