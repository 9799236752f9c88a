// SPDX-License-Identifier: Apache-2.0
// A name in a directory that is ours, and goes when this object does: a socket, a pid file.
//
// The directory is opened while paths can still be resolved; the name is removed through its
// descriptor, so that this works behind the sandbox and wherever the process has moved to. Main
// thread; move-only.
#pragma once

#include <string>
#include <utility>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

class OwnedPath {
 public:
  OwnedPath() = default;
  OwnedPath(OwnedPath&& other) noexcept { *this = std::move(other); }
  OwnedPath& operator=(OwnedPath&& other) noexcept;
  OwnedPath(const OwnedPath&) = delete;
  OwnedPath& operator=(const OwnedPath&) = delete;
  ~OwnedPath() { remove(); }

  /// Opens the directory of `path`; nothing is owned until take(). The error names the path.
  static Result<OwnedPath> open(const std::string& path);

  /// From here on the name is ours to remove.
  void take() { taken_ = true; }
  /// Removes the name, if it is ours.
  void remove();

  /// The directory's descriptor (O_PATH), -1 where nothing was opened, and the name in it.
  int directory() const { return directory_.get(); }
  const std::string& name() const { return name_; }

 private:
  UniqueFd directory_;
  std::string name_;
  bool taken_ = false;
};

}  // namespace vireo
