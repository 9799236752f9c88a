// SPDX-License-Identifier: Apache-2.0
// How fast KVM runs guest code: a vCPU that counts for about 10 ms, at the privilege of a kernel
// and at that of a user's program, and the host beside it. Main thread; nothing is left behind.
#pragma once

#include <cstdint>

#include "arch/arch.h"
#include "src/base/error.h"

namespace vireo {

/// Instructions per second of processor time in a guest. Errors: what /dev/kvm gives (kNoKvm,
/// kPermission), or kNoKvm where the guest could not run on; a refused resource is kSystem.
Result<std::uint64_t> measure_guest_speed(arch::GuestPrivilege privilege);

/// The same of the host itself.
std::uint64_t measure_host_speed();

}  // namespace vireo
