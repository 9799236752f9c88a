// SPDX-License-Identifier: Apache-2.0
// What becomes of a machine's disks at a snapshot, so that they stay as the guest then had them.
//
// freeze: the file that a disk is written to is only read from then on, and the machine goes on
// upon an overlay over it. reflink: the file is copied, which costs nothing where its file system
// shares the blocks, and the machine goes on with its own.
//
// Either all disks are as the snapshot has them, or none has changed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "devices/block/overlay_file.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/config.h"
#include "src/device_set.h"
#include "src/saved_disks.h"

namespace vireo {

enum class DisksAtSnapshot : std::uint8_t {
  kNone,  ///< seen to elsewhere, or the machine stands still
  kFreeze,
  kReflink,
};

/// An empty file that has its name already, open for reading and writing: the overlay or the copy
/// of that disk.
struct CheckpointFile {
  std::string id;
  std::string path;  ///< absolute
  UniqueFd file;
};

class DiskCheckpoint {
 public:
  /// `config` is the machine's as it is, whose relative paths begin at `directory`; a disk that is
  /// not written needs no file. On the device set's thread. Errors: kConfig where it cannot be.
  static Result<DiskCheckpoint> create(DisksAtSnapshot mode, std::vector<CheckpointFile> files,
                                       DeviceSet& devices, const Config& config,
                                       const std::string& directory);

  /// What shortens take(), while the machine runs: has the file system write what it holds back.
  /// Any thread.
  Result<> prepare();
  /// While vCPUs and devices stand still: what the snapshot is to know of the disks. Any thread.
  Result<SavedDisks> take();
  /// The configuration of a machine that goes on from there.
  Config saved_config(const Config& config) const;
  /// Behind take(), while devices stand still: the machine goes on upon the overlays, which
  /// `config` tells from then on. On the device set's thread.
  void go_on(Config& config);
  /// Behind go_on(), for the end of the line that says why there is no snapshot all the same:
  /// which disks stay frozen; nothing where none does. Any thread.
  std::string still_frozen() const;
  /// What the snapshot needs is on its disk. Any thread.
  Result<> sync() const;

 private:
  /// A disk that is written.
  struct Part {
    std::string id;
    std::string path;        // of the file behind it
    int written = -1;        // that file
    bool overlay = false;    // it is one
    std::uint64_t size = 0;  // of the disk
    std::string new_path;    // of the overlay over it, or of its copy
    UniqueFd copy;
    OverlayFile made;
  };

  DiskCheckpoint(DisksAtSnapshot mode, DeviceSet& devices) : mode_(mode), devices_(&devices) {}

  Result<> add(const BlockDevice& disk, std::vector<CheckpointFile>& files, const Config& config,
               const std::string& directory);
  Result<> add_overlay(Part& part, UniqueFd file) const;
  Result<> clone_all() const;
  Result<> write_headers();

  DisksAtSnapshot mode_;
  DeviceSet* devices_;
  std::vector<Part> parts_;
};

}  // namespace vireo
