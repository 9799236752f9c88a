// SPDX-License-Identifier: Apache-2.0
#include "src/base/owned_path.h"

#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

namespace vireo {

OwnedPath& OwnedPath::operator=(OwnedPath&& other) noexcept {
  remove();
  directory_ = std::move(other.directory_);
  name_ = std::move(other.name_);
  taken_ = std::exchange(other.taken_, false);
  return *this;
}

Result<OwnedPath> OwnedPath::open(const std::string& path) {
  OwnedPath owned;
  const std::size_t name = path.rfind('/') + 1;
  owned.name_ = path.substr(name);
  const std::string directory = name == 0 ? "." : path.substr(0, name);
  owned.directory_ = UniqueFd(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!owned.directory_) {
    return fail_errno(errno, path);
  }
  return owned;
}

void OwnedPath::remove() {
  if (std::exchange(taken_, false)) {
    ::unlinkat(directory_.get(), name_.c_str(), 0);
  }
}

}  // namespace vireo
