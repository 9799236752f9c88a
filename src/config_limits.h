// SPDX-License-Identifier: Apache-2.0
// The keys of [limits], for the table of all keys (src/config_keys.cc): each checks a value and
// sets its part of the configuration.
#pragma once

#include "src/base/error.h"
#include "src/config.h"
#include "src/config_value.h"

namespace vireo {

Result<> set_cpu_affinity(const ConfigValue& value, Config& config);
Result<> set_core_scheduling(const ConfigValue& value, Config& config);
Result<> set_cgroup(const ConfigValue& value, Config& config);
Result<> set_memory_max(const ConfigValue& value, Config& config);
Result<> set_cpu_quota(const ConfigValue& value, Config& config);
Result<> set_cpu_weight(const ConfigValue& value, Config& config);
Result<> set_pids_max(const ConfigValue& value, Config& config);
Result<> set_io_max(const ConfigValue& value, Config& config);
Result<> set_rlimits(const ConfigValue& value, Config& config);

}  // namespace vireo
