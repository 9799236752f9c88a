// SPDX-License-Identifier: Apache-2.0
// SIGBUS in guest memory (huge pages that ran out, a truncated file behind it, a memory error)
// becomes one line that says so and exit status 71, never a bare death by signal.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/memory/guest_memory.h"

namespace vireo {

/// Installs the handler for `memory`, which must live until forget_bus_errors(). Main thread,
/// before any other thread starts; one GuestMemory per process.
///
/// `what` is the line for a page that cannot be had: lost_page_text().
///
/// `at_exit` runs in the signal handler before the process ends (the terminal is restored there):
/// async-signal-safe functions only.
Result<> watch_bus_errors(const GuestMemory& memory, std::string what, void (*at_exit)());
void forget_bus_errors();

/// Has each page of `bytes` there, by a read. One that its file does not give is a bus error, where
/// MADV_POPULATE_READ would try it for ever before Linux 6.9. Any thread.
void touch(std::span<const std::byte> bytes);

/// The same end, for who has found that a page cannot be had: others may wait for it, and so never
/// end. Any thread; async-signal-safe.
[[noreturn]] void end_without_page(std::string_view what, int status);

/// What is to be said of a page that the host cannot give, where memory reads as `file` does;
/// empty: it is the host's own.
std::string lost_page_text(const std::string& file);

}  // namespace vireo
