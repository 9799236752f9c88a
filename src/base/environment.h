// SPDX-License-Identifier: Apache-2.0
// What a service manager says by the environment.
#pragma once

#include <cstdint>
#include <optional>

namespace vireo {

/// The variable's value where it is a whole number and nothing else. Main thread.
std::optional<std::uint64_t> environment_number(const char* name);

}  // namespace vireo
