// SPDX-License-Identifier: Apache-2.0
// Where this process stands in cgroup v2 (cgroups(7)).
#pragma once

#include <string>

#include "src/base/error.h"

namespace vireo {

/// Where cgroup v2 is mounted: /sys/fs/cgroup, or what systemd makes below it beside the
/// hierarchies of v1. Errors: kMissingInput where it is not mounted, else kSystem.
Result<std::string> cgroup_mount();

/// The process's own group, as a path from the mount ("/system.slice/…"; "/" for the root). Errors:
/// kMissingInput where it is in none of v2.
Result<std::string> own_cgroup();

}  // namespace vireo
