// SPDX-License-Identifier: Apache-2.0
// The files of `vireo ctl SOCKET snapshot`: the snapshot's, which gets its name when it is whole,
// and the overlays or copies of the disks, which have theirs before the VM writes to them.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "src/base/error.h"
#include "src/base/unpublished_file.h"
#include "src/ctl_command.h"

namespace vireo {

class CtlSnapshot {
 public:
  /// Makes them all, for `command`, which outlives it; those of disks are removed again where that
  /// fails.
  static Result<CtlSnapshot> create(const CtlCommand& command);

  /// What the VM is asked, and the descriptors beside that; they stay this object's.
  std::string body() const;
  std::vector<int> files() const;

  /// The snapshot is whole: it gets its name, in place of what has it, and its seal.
  Result<> publish();
  /// The VM has refused: files of disks that it does not use are removed.
  void on_refusal() const;
  /// The VM has ended behind its snapshot: the overlays are not needed.
  void on_end() const;

 private:
  struct DiskFile {
    std::string id;
    std::string path;
    UnpublishedFile file;
  };

  CtlSnapshot(const CtlCommand& command, UnpublishedFile file)
      : command_(&command), file_(std::move(file)) {}

  Result<> add_disks();
  Result<> add_disk(const std::string& id);
  void remove_disk_files() const;

  const CtlCommand* command_;
  UnpublishedFile file_;
  std::string parent_;  // the UUID
  std::vector<DiskFile> disks_;
};

}  // namespace vireo
