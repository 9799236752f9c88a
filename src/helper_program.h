// SPDX-License-Identifier: Apache-2.0
// Programs of the host that do something for vireo, as children. Main thread, before any other
// thread and the sandbox.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"

namespace vireo {

/// Where programs are looked for: PATH, and the administrator's directories, which the PATH of
/// others often leaves out.
std::vector<std::string> program_directories();

/// The path of the first of `names` that is in one of `directories`; empty where none is.
std::string find_program(std::span<const std::string> directories,
                         std::span<const std::string_view> names);

struct HelperProgram {
  /// What the program finds `file` as.
  static constexpr const char* kFile = "/proc/self/fd/3";

  std::string path;
  std::vector<std::string> arguments;    ///< without the program's name
  std::vector<std::string> environment;  ///< "NAME=value", before what vireo itself has
  int output = -1;                       ///< its stdout; none: the same as stderr
  int file = -1;                         ///< a descriptor of which it gets a copy
};

/// Runs it to its end. The error is kSystem, and has the last line that it wrote to stderr.
Result<> run_program(const HelperProgram& program);

}  // namespace vireo
