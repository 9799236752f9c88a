// SPDX-License-Identifier: Apache-2.0
// The pid file: made when the VM is built, locked while it lives, removed at its end. One left by a
// killed process is replaced, since its lock died with it; a live one never. An inherited one
// (fd:N) is its opener's to remove: it is emptied at the end.
#pragma once

#include <string>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/base/owned_path.h"

namespace vireo {

class PidFile {
 public:
  PidFile() = default;
  PidFile(const PidFile&) = delete;
  PidFile& operator=(const PidFile&) = delete;
  ~PidFile();

  /// `path` may be fd:N, a regular file. Errors: kSystem where a live process holds it, and those
  /// of opening and writing.
  Result<> create(const std::string& path);

  /// The directory in which the name is removed at the end; -1 where there is none.
  int directory() const { return name_.directory(); }

 private:
  /// False where the file was its last owner's, who has removed it meanwhile: once more.
  Result<bool> try_create(const std::string& path);

  UniqueFd file_;
  OwnedPath name_;  // goes first: a successor finds the lock free when the file is gone
  bool inherited_ = false;
};

}  // namespace vireo
