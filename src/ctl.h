// SPDX-License-Identifier: Apache-2.0
// `vireo ctl SOCKET VERB`: a client of the control socket, for people and for scripts.
#pragma once

#include <string>

#include "src/base/error.h"
#include "src/ctl_command.h"

namespace vireo {

/// Whether there is such a verb.
bool is_ctl_verb(const std::string& verb);

/// Whether the words of the command line go together; kUsage where they do not. What is not given
/// is there behind it.
Result<> check_ctl_command(CtlCommand& command);

/// Does it and prints the answer. Returns the exit status: 0 done, 1 the VM refused, 69 nobody is
/// behind that socket. stop and kill wait for the VM's end.
Result<int> run_ctl(const CtlCommand& command);

}  // namespace vireo
