// SPDX-License-Identifier: Apache-2.0
// The keys of [[disk]], [[volume]] and [cloud_init], for the table of all keys
// (src/config_keys.cc). Those of a disk or volume set the one that was added last.
#pragma once

#include "src/base/error.h"
#include "src/config.h"
#include "src/config_value.h"

namespace vireo {

Result<> add_disk(const ConfigValue& value, Config& config);
Result<> set_disk_id(const ConfigValue& value, Config& config);
Result<> set_disk_path(const ConfigValue& value, Config& config);
Result<> set_disk_root(const ConfigValue& value, Config& config);
Result<> set_disk_partuuid(const ConfigValue& value, Config& config);
Result<> set_disk_readonly(const ConfigValue& value, Config& config);
Result<> set_disk_direct(const ConfigValue& value, Config& config);
Result<> set_disk_cache(const ConfigValue& value, Config& config);
Result<> set_disk_queues(const ConfigValue& value, Config& config);
Result<> set_disk_overlay(const ConfigValue& value, Config& config);
Result<> set_disk_base_format(const ConfigValue& value, Config& config);
RateLimitConfig& disk_limit(Config& config);

Result<> add_volume(const ConfigValue& value, Config& config);
Result<> set_volume_id(const ConfigValue& value, Config& config);
Result<> set_volume_path(const ConfigValue& value, Config& config);
Result<> set_volume_size(const ConfigValue& value, Config& config);

Result<> set_cloud_init(const ConfigValue& value, Config& config);
Result<> set_seed(const ConfigValue& value, Config& config);
Result<> set_user_data(const ConfigValue& value, Config& config);
Result<> set_meta_data(const ConfigValue& value, Config& config);
Result<> set_network_config(const ConfigValue& value, Config& config);

}  // namespace vireo
