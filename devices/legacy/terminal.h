// SPDX-License-Identifier: Apache-2.0
// The terminal that vireo was started on, in raw mode while the guest has it, and restored whatever
// way the process ends (all but SIGKILL).
#pragma once

#include "src/base/error.h"

namespace vireo {

/// True where descriptor `fd` is a terminal and this process is in its foreground; a background job
/// that touched its terminal would be stopped by the kernel.
bool owns_terminal(int fd);

/// Puts the terminal into raw mode (the guest's own line discipline does the rest; output
/// processing stays as it was) and makes sure that exit, abort and fatal signals restore it. Main
/// thread; one terminal a process.
Result<> make_terminal_raw(int fd);
/// Raw mode of a pseudo-terminal of ours, which nobody needs restored.
Result<> make_pty_raw(int fd);
/// Raw mode once more, after the process was stopped and continued.
void renew_raw_terminal();
/// Restores the terminal; nothing happens where it is not raw. Async-signal-safe.
void restore_terminal();

}  // namespace vireo
