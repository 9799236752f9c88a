// SPDX-License-Identifier: Apache-2.0
// What `vireo doctor` looks at: one Check for each line of its report, made of a real call.
//
// A check opens, asks and closes again: it needs no privilege, leaves nothing behind, and where a
// call fails the finding says so. Main thread, while it is the only one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"

namespace vireo {

/// The parts of a line that are always the same. `id` is snake_case and stable: scripts rely on it.
struct Check {
  const char* id;
  const char* title;
  const char* cost;    ///< what a VM misses without it
  const char* remedy;  ///< how to mend that
};

enum class FindingState : std::uint8_t {
  kOk,
  kLacking,
  kUnknown,  ///< it could not be found out; `value` says why
};

struct Finding {
  const char* id = nullptr;
  const char* title = nullptr;
  FindingState state = FindingState::kUnknown;
  std::string value;                    ///< what was found, one line
  std::string cost;                     ///< of a lack; else empty
  std::string remedy;                   ///< of a lack; else empty
  std::optional<std::uint64_t> number;  ///< `value` as a number, where it is one
  /// Set where no VM can run because of this: the code of the error that `vireo run` gives.
  std::optional<ErrorCode> blocker;
};

Finding found(const Check& check, std::string value,
              std::optional<std::uint64_t> number = std::nullopt);
Finding lacking(const Check& check, std::string value);
/// A lack without which no VM runs.
Finding blocking(const Check& check, std::string value, ErrorCode code);
Finding unknown(const Check& check, std::string value);

/// "call: what errno means".
std::string failure(std::string_view call, int errnum);

/// A heading of the report and the lines below it.
struct Section {
  const char* id = nullptr;
  const char* title = nullptr;
  std::vector<Finding> findings;
};

Section check_system();
Section check_kvm();
Section check_io_uring();
Section check_memory();
Section check_network();
Section check_sandbox();
Section check_limits();

}  // namespace vireo
