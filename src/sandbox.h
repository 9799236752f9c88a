// SPDX-License-Identifier: Apache-2.0
// What holds the process once a hostile guest may own it: entered before any other thread exists
// and before the guest's first instruction, narrowed on each thread before it serves the guest.
//
//   no new privileges, no capabilities, no core dump, an empty root directory of its own (where
//   the process may have one; src/empty_root.h), no path but those named here (landlock), no system
//   call but those that a thread of its kind uses (seccomp; src/seccomp/rules.h), no io_uring
//   operation but those that the ring was restricted to.
//
// What the host does not give is left out with one warning that names it; `vireo doctor` tells what
// it costs. There is no pid or network namespace: the process stays the one that was started.
#pragma once

#include <cstdint>

#include "src/base/error.h"
#include "src/sandbox_paths.h"

namespace vireo {

enum class SandboxedThread : std::uint8_t { kMain, kVcpu, kIo, kOffload, kFeeder };

/// The process from here on. Main thread, while it is the only one. Errors: where the kernel
/// refuses what it offers.
Result<> enter_sandbox(const SandboxPaths& paths);

/// The calling thread from here on: only what its kind needs.
Result<> narrow_sandbox(SandboxedThread kind);

}  // namespace vireo
