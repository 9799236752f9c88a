// SPDX-License-Identifier: Apache-2.0
// What the exits of a machine's vCPUs cost, as JSON: for the profile and for who asks while it
// runs.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "src/base/error.h"
#include "src/bus/bus.h"
#include "src/kvm/kvm_stats.h"
#include "src/kvm/vcpu.h"

namespace vireo {

/// "io", "mmio", … for KVM_EXIT_….
std::string exit_reason_name(std::uint32_t reason);

/// For each vCPU its exits by phase, reason and place, and KVM's own counters. The vCPUs count
/// exits. Any thread.
Result<nlohmann::ordered_json> vcpus_json(std::span<const std::unique_ptr<Vcpu>> vcpus,
                                          const Bus& ports, const Bus& mmio);
/// KVM's own counters that are not zero, by their names.
Result<nlohmann::ordered_json> counters_json(const KvmStats& stats);

}  // namespace vireo
