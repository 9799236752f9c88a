// SPDX-License-Identifier: Apache-2.0
// What is behind arch::CpuModel.
#pragma once

#include <cstdint>
#include <memory>

#include "arch/arch.h"
#include "arch/x86_64/cpuid.h"

namespace vireo::arch {

/// What all vCPUs of the model show.
const CpuidTable& table_of(const CpuModel& model);

/// One that shows `table`.
std::unique_ptr<CpuModel> make_cpu_model(CpuidTable table, const CpuTopology& topology);

/// KVM_SET_CPUID2, with the numbers of vCPU `id`.
Result<> set_cpuid(int vcpu_fd, const CpuModel& model, std::uint32_t id);

}  // namespace vireo::arch
