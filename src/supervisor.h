// SPDX-License-Identifier: Apache-2.0
// What the process tells whoever started it: sd_notify(3) over NOTIFY_SOCKET, one byte on the
// descriptor of process.notify, and pings for systemd's watchdog.
//
// Owned by Machine. open() while paths can be resolved, the rest on the reactor's thread. A
// supervisor that does not read costs nothing: what it has not taken is tried again later, and of
// several states only the newest is kept.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/io/reactor.h"

namespace vireo {

class Supervisor {
 public:
  explicit Supervisor(Reactor& reactor);
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;
  ~Supervisor() = default;

  /// Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, and takes the descriptor `notify` (fd:N,
  /// or empty). Errors: those of the descriptor, beginning with process.notify.
  Result<> open(const std::string& notify);

  /// Begins to ping the watchdog, where there is one.
  void start();
  /// STATUS=: one line for people.
  void status(std::string_view text);
  /// READY=1, and the byte. Once.
  void ready();
  /// STOPPING=1.
  void stopping();
  /// Ends pings and retries; their Ops are gone after the reactor's next drain().
  void stop();

 private:
  void connect(const std::string& address);
  void flush();
  void ping();

  UniqueFd socket_;
  UniqueFd notify_;
  std::uint64_t watchdog_interval_ns_ = 0;  // 0: no watchdog
  std::string state_;                       // READY=1 or STOPPING=1, not yet taken
  std::string status_;                      // STATUS=…, not yet taken
  Timer watchdog_;
  Timer retry_;
};

}  // namespace vireo
