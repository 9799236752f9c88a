// SPDX-License-Identifier: Apache-2.0
// From a snapshot's tables to where its memory is.
#pragma once

#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/memory/memory_layer.h"
#include "src/memory/page_table.h"
#include "src/snapshot/snapshot_file.h"

namespace vireo {

/// Which pages it has. Errors: kBadInput.
Result<std::vector<PageRun>> pages_of(const SnapshotFile& snapshot);
/// And how they are read: `memory` is the file that has it and outlives the layer, `fd` the
/// snapshot's, which may be the same.
Result<MemoryLayer> layer_of(const SnapshotFile& snapshot, int fd, int memory);

/// A snapshot's memory in a file of its own.
struct MemoryFile {
  std::string path;  ///< empty, and no file: it has none
  UniqueFd file;
};
/// That of the snapshot at `path`, which is as long as it has to be. Errors: kMissingInput,
/// kPermission, kBadInput.
Result<MemoryFile> open_memory_file(const SnapshotFile& snapshot, const std::string& path);

}  // namespace vireo
