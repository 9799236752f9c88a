// SPDX-License-Identifier: Apache-2.0
// `vireo disk VERB OVERLAY`: what overlays hold, and what is done with them between VMs.
#pragma once

#include <string>

#include "src/base/error.h"

namespace vireo {

struct DiskCommand {
  std::string verb;  ///< info, commit or rebase
  std::string overlay;
  std::string base;         ///< instead of the one that the overlay names; of rebase: the new one
  std::string base_format;  ///< rebase: "raw", "overlay", or empty: raw
  bool moved = false;       ///< rebase: the new base is the old one at another place
  bool json = false;        ///< info: for programs
};

/// Does it. Errors: those of the files; kSystem where a VM uses one of them.
Result<> run_disk_command(const DiskCommand& command);

}  // namespace vireo
