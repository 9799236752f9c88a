// SPDX-License-Identifier: Apache-2.0
// The parts of the shells' completion files that are made from the tables.
#pragma once

#include <string>
#include <string_view>

namespace vireo::manual {

/// What the line "@NAME@" of a completion's template stands for; empty where there is no such part:
///   bash-commands, bash-options, bash-values, bash-arguments
///   zsh-commands, zsh-verbs, zsh-arguments
///   fish-with-value, fish-rules
std::string completion_part(std::string_view name);

}  // namespace vireo::manual
