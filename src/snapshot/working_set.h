// SPDX-License-Identifier: Apache-2.0
// Which pages of a snapshot a guest has touched, in a file beside it: FORMAT.md, "The working set".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/snapshot/snapshot_file.h"

namespace vireo {

/// Pages, in the order of guest memory.
struct WorkingSetRun {
  std::uint64_t first = 0;
  std::uint64_t count = 0;  ///< at least 1
  bool operator==(const WorkingSetRun&) const = default;
};

struct WorkingSet {
  SnapshotUuid snapshot = {};
  std::vector<WorkingSetRun> runs;  ///< ascending, with something in between
};

/// Where that of a snapshot is.
std::string working_set_path(const std::string& snapshot);

std::string encode_working_set(const WorkingSet& set);
/// Of a file's bytes, which may be anybody's: runs of pages below `pages`. Errors: kBadInput.
Result<WorkingSet> decode_working_set(std::span<const std::byte> bytes, std::uint64_t pages);

}  // namespace vireo
