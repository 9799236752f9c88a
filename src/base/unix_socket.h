// SPDX-License-Identifier: Apache-2.0
// UNIX stream sockets by path: listening on one, as the only one, and connecting to one.
//
// A socket that a killed process left behind is replaced, one that somebody listens on never: the
// look and the replacement are one step among processes that ask here, under a lock of the
// directory. Main thread.
#pragma once

#include <string>
#include <string_view>

#include <sys/types.h>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/base/owned_path.h"

namespace vireo {

/// A socket that listens; its name goes with it. Move-only.
class UnixListener {
 public:
  /// Listens on `path` with permissions `mode` (before the umask), or takes an inherited listener
  /// (fd:N, fd:NAME). Errors begin with `key` (the setting): kConfig where the path is somebody
  /// else's, or the descriptor no UNIX stream socket that listens.
  static Result<UnixListener> open(const std::string& path, std::string_view key, mode_t mode);

  int fd() const { return fd_.get(); }
  /// The directory in which the name is removed at the end, -1 for an inherited listener.
  int directory() const { return name_.directory(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }

 private:
  UniqueFd fd_;
  OwnedPath name_;
};

/// Connects to what listens on `path`. Errors: from_errno(), beginning with the path.
Result<UniqueFd> connect_unix(const std::string& path);

}  // namespace vireo
