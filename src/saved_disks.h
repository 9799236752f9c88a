// SPDX-License-Identifier: Apache-2.0
// What a snapshot knows of the disks that its machine writes, so that one that has moved on since
// is not taken for the one that the guest had.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/disks.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

struct SavedDisks {
  static constexpr std::string_view kTag = "disks";
  static constexpr std::uint32_t kVersion = 1;
  static constexpr std::size_t kDisksMax = 256;

  /// The file that is written: an image, or an overlay.
  struct Disk {
    static constexpr std::size_t kTextMax = 4096;
    std::string id;
    bool block_device = false;  ///< the times say nothing
    std::uint64_t inode = 0;
    std::uint64_t bytes = 0;
    std::uint64_t modified_ns = 0;  ///< st_mtim and st_ctim, since the epoch
    std::uint64_t changed_ns = 0;
    std::uint64_t generation = 0;  ///< the attribute user.vireo.generation; 0: it has none
    void fields(auto& ar) {
      ar.text(id, kTextMax);
      ar(block_device, inode, bytes, modified_ns, changed_ns, generation);
    }
  };
  std::vector<Disk> disks;

  void fields(auto& ar) { ar.list(disks, kDisksMax); }
};

/// A disk that the guest may write: its id, and the descriptor of the file behind it.
struct WrittenDisk {
  std::string_view id;
  int file = -1;
};
std::vector<WrittenDisk> written_disks(std::span<const BlockDevice* const> disks);

/// As they are now; nothing is held back, and nothing in flight. Errors: kSystem.
Result<SavedDisks> save_disks(std::span<const WrittenDisk> disks);

/// The guest goes on to write them: no snapshot before this fits any more, however soon it writes.
void advance_generation(std::span<const WrittenDisk> disks);

/// Whether `disks` are as they were saved, but for those of `accepted`. Errors: kBadInput, with the
/// disk's id and what can be done.
Result<> check_disks(const SavedDisks& saved, std::span<const OpenDisk> disks,
                     std::span<const std::string> accepted);

}  // namespace vireo
