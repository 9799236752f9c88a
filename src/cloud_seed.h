// SPDX-License-Identifier: Apache-2.0
// The cloud-init seed of a VM that brings texts instead of an ISO. Main thread, before any other
// thread and the sandbox.
#pragma once

#include <span>
#include <string>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/disk_config.h"
#include "src/helper_program.h"

namespace vireo {

/// The texts as cloud-init's NoCloud source wants them: an ISO with the label cidata, in memory
/// that nothing can change any more. A program in one of `directories` makes it; of the same texts
/// and the same `name` (of the VM, or empty) the same bytes where that is xorrisofs. Errors begin
/// with cloud_init.
Result<UniqueFd> make_cloud_seed(const CloudInitConfig& cloud_init, const std::string& name,
                                 std::span<const std::string> directories = program_directories());

}  // namespace vireo
