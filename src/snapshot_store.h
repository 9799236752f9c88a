// SPDX-License-Identifier: Apache-2.0
// A snapshot that is written from others: plain, compressed, or with its memory in a file beside
// it.
#pragma once

#include <span>
#include <string>

#include <sys/types.h>

#include "src/base/error.h"
#include "src/memory/memory_layer.h"
#include "src/snapshot/snapshot_file.h"

namespace vireo {

/// What it holds.
struct StoredSnapshot {
  SnapshotFacts facts;                        ///< and how it is stored
  std::span<const SnapshotSection> sections;  ///< but for that of a file of memory
  std::span<const MemoryLayer> layers;        ///< as plan_merge() has them
};

/// Writes it to `path`, or in the place of what is there, whole or not at all; shows how far it is.
/// Its memory's file, where it has one, is `path` and ".mem". Errors: kSystem, kBadInput; kConfig
/// where that file is there already.
Result<> store_snapshot(const StoredSnapshot& snapshot, mode_t mode, const std::string& path);

}  // namespace vireo
