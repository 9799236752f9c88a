// SPDX-License-Identifier: Apache-2.0
// `vireo ctl SOCKET VERB`: a client of the control socket, for people and for scripts.
#pragma once

#include <cstdint>
#include <string>

#include "src/base/error.h"

namespace vireo {

struct CtlCommand {
  std::string socket;
  std::string verb;
  std::string timeout;   ///< of stop; empty: the VM's own
  std::string argument;  ///< of drive: which; of snapshot: the file
  std::string settings;  ///< of drive: "size=20G,…"
  std::string then;      ///< of snapshot: resume, pause or stop
  std::string disks;     ///< of snapshot: what becomes of them
  bool diff = false;     ///< of snapshot: only what has changed
  std::string parent;    ///< of snapshot: since that file
  bool json = false;     ///< the answer as it came
};

/// Whether there is such a verb.
bool is_ctl_verb(const std::string& verb);

/// Does it and prints the answer. Returns the exit status: 0 done, 1 the VM refused, 69 nobody is
/// behind that socket. stop and kill wait for the VM's end.
Result<int> run_ctl(const CtlCommand& command);

}  // namespace vireo
