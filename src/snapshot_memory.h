// SPDX-License-Identifier: Apache-2.0
// From a snapshot's tables to where its memory is.
#pragma once

#include <vector>

#include "src/base/error.h"
#include "src/memory/memory_layer.h"
#include "src/memory/page_table.h"
#include "src/snapshot/snapshot_file.h"

namespace vireo {

/// Which pages it has. Errors: kBadInput.
Result<std::vector<PageRun>> pages_of(const SnapshotFile& snapshot);
/// And how they are read from `fd`, which is its file and outlives the layer.
Result<MemoryLayer> layer_of(const SnapshotFile& snapshot, int fd);

}  // namespace vireo
