// SPDX-License-Identifier: Apache-2.0
// `vireo snapshot VERB FILE…`: what snapshots hold, whether they are whole, diffs folded into their
// base, memory stored compressed or not, and files sealed.
#pragma once

#include <string>
#include <vector>

#include "src/base/error.h"

namespace vireo {

struct SnapshotCommand {
  std::string verb;  ///< info, verify, merge, compress, decompress or seal
  std::vector<std::string> files;
  std::string output;  ///< of merge; of compress and decompress, where it is not in place
  bool json = false;   ///< info: for programs
};

/// Does it. Errors: those of the files, by their names.
Result<> run_snapshot_command(const SnapshotCommand& command);

}  // namespace vireo
