// SPDX-License-Identifier: Apache-2.0
// Landlock rules (Documentation/userspace-api/landlock.rst): no path but the sandbox's own.
#pragma once

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/sandbox_paths.h"

namespace vireo {

/// A ruleset for landlock_restrict_self(2); an empty descriptor where this kernel has no landlock.
/// Each access that this kernel's version knows is handled, so that what is not named is denied.
Result<UniqueFd> make_landlock_rules(const SandboxPaths& paths);

}  // namespace vireo
