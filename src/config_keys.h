// SPDX-License-Identifier: Apache-2.0
// The table of the configuration's keys: how each is called and how it is set. File and options
// go through it.
#pragma once

#include <span>
#include <string_view>

#include "src/base/error.h"
#include "src/config.h"
#include "src/config_value.h"

namespace vireo {

struct ConfigKey {
  std::string_view path;  ///< "machine.cpus"
  /// Null: the key belongs to a later version, and is refused by name.
  Result<> (*set)(const ConfigValue&, Config&) = nullptr;
  /// A table that means something even when it is empty; its keys follow.
  bool section = false;
};

/// Every key of the configuration file, those of later versions included.
std::span<const ConfigKey> config_keys();
/// The key of this name, or nullptr.
const ConfigKey* find_config_key(std::string_view path);

}  // namespace vireo
