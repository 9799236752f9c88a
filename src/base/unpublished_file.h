// SPDX-License-Identifier: Apache-2.0
// A file that is made whole before anybody finds it: it has no name in its directory until it is
// published, and is gone with this object, or the process, where it is not. On a file system that
// knows no files without a name it has one of its own meanwhile.
#pragma once

#include <string>

#include <sys/types.h>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/base/owned_path.h"

namespace vireo {

class UnpublishedFile {
 public:
  /// To be `path` one day. Opened for reading and writing.
  static Result<UnpublishedFile> create(const std::string& path, mode_t mode);

  int fd() const { return fd_.get(); }
  /// Behind publish() or replace(): it is not written to any more.
  void close() { fd_.reset(); }

  /// Gives it its name, durably; false where that is taken. What it holds is its maker's to sync.
  Result<bool> publish();
  /// Gives it its name, durably, in place of what has it: whoever looks finds the one or the other.
  /// One who is killed in between leaves at most a `.NAME.vireo`, which goes with the next.
  Result<> replace();
  /// Removes what has the name.
  Result<> remove_target() const;

 private:
  Result<> replace_by_link();
  Result<> sync_directory() const;

  UniqueFd fd_;
  OwnedPath target_;
  OwnedPath temporary_;
};

}  // namespace vireo
