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
  static constexpr std::uint32_t kVersion = 2;
  static constexpr std::size_t kDisksMax = 256;

  /// The file that is written: an image, or an overlay.
  struct Disk {
    static constexpr std::size_t kTextMax = 4096;
    std::string id;
    bool overlay = false;       ///< it is one
    bool frozen = false;        ///< it is only read since, and a machine wants an overlay over it
    bool block_device = false;  ///< the times say nothing
    std::uint64_t inode = 0;
    std::uint64_t bytes = 0;
    std::uint64_t modified_ns = 0;  ///< st_mtim and st_ctim, since the epoch
    std::uint64_t changed_ns = 0;
    std::uint64_t generation = 0;  ///< the attribute user.vireo.generation; 0: it has none
    void fields(auto& ar) {
      ar.text(id, kTextMax);
      ar(block_device, inode, bytes, modified_ns, changed_ns, generation);
      if (ar.version() >= 2) {
        ar(overlay, frozen);
      }
    }
  };
  std::vector<Disk> disks;

  void fields(auto& ar) { ar.list(disks, kDisksMax); }
};

/// Of a file that is not written to meanwhile. Errors: kSystem.
Result<SavedDisks::Disk> save_disk(const std::string& id, int file);

/// The guest goes on to write `file`: no snapshot before this fits any more, however soon it
/// writes.
void advance_generation(int file);

/// The machine that is restored has something to write for each that is frozen, unless that is one
/// of `accepted`. Errors: kConfig, with the disk's id and what can be done.
Result<> check_frozen(const SavedDisks& saved, const Config& config,
                      std::span<const std::string> accepted);

/// A disk that the machine writes, and the file that has to be as it was; the disk owns that.
struct WrittenDisk {
  std::string id;
  int file = -1;
};
std::vector<WrittenDisk> written_disks(std::span<const OpenDisk> disks);

/// Whether `disks` are as they were saved, but for those of `accepted`. Errors: kBadInput, with the
/// disk's id and what can be done.
Result<> check_disks(const SavedDisks& saved, std::span<const WrittenDisk> disks,
                     std::span<const std::string> accepted);

}  // namespace vireo
