// SPDX-License-Identifier: Apache-2.0
// The table of the configuration's keys: how each is called and how it is set. File and options
// go through it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/config.h"
#include "src/config_value.h"

namespace vireo {

struct ConfigKey {
  enum class Kind : std::uint8_t {
    kValue,
    kTable,   ///< means something even when it is empty; its keys follow
    kTables,  ///< as many as there shall be: set() adds one, which the keys that follow set
    kList,    ///< as many values as there shall be: set() adds some
  };
  std::string_view path;  ///< "machine.cpus"
  /// Null: the key belongs to a later version, and is refused by name.
  Result<> (*set)(const ConfigValue&, Config&) = nullptr;
  Kind kind = Kind::kValue;
};

/// Every key of the configuration file, those of later versions included.
std::span<const ConfigKey> config_keys();
/// The key of this name, or nullptr.
const ConfigKey* find_config_key(std::string_view path);
/// Whether there are keys within a table of this name.
bool is_config_table(std::string_view path);
/// What there is to say of a name that is no key, with the one it resembles. `table` ("disk.", or
/// empty) is known to the reader, who is told what stands behind it.
std::string unknown_key(std::string_view path, std::string_view table = {});

}  // namespace vireo
