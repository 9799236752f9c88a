// SPDX-License-Identifier: Apache-2.0
// The verb "drive": a disk's size, file and limits while its VM runs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/machine.h"

namespace vireo {

/// A disk after its change.
struct DriveState {
  std::string id;
  std::string path;
  std::uint64_t bytes = 0;
};

/// Does what `body` asks for (vireo-json(7), drive); `file` is open where that names a path, unless
/// the machine may open that itself. Errors tell what is wrong with the request, and nothing is
/// changed then. `done` runs at the end, with what the host failed. On the reactor's thread.
Result<> change_drive(Machine& machine, const std::string& body, UniqueFd file,
                      std::function<void(const Result<DriveState>&)> done);

}  // namespace vireo
