// SPDX-License-Identifier: Apache-2.0
// The verb "snapshot": the machine into a file.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/machine.h"

namespace vireo {

/// Does what `body` asks for (vireo-json(7), snapshot) with `files`, which came beside it: the
/// snapshot's, and those of disk_files in their order. Errors tell what is wrong with the request,
/// and nothing is done then. On the reactor's thread.
Result<> save_machine_into(Machine& machine, const std::string& body, std::vector<UniqueFd> files,
                           SnapshotDone done);

/// What has become of it, for programs.
nlohmann::ordered_json snapshot_json(const SnapshotReport& report);

}  // namespace vireo
