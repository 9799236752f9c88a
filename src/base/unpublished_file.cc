// SPDX-License-Identifier: Apache-2.0
#include "src/base/unpublished_file.h"

#include <cerrno>
#include <cstdio>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/core.h>

namespace vireo {

Result<UnpublishedFile> UnpublishedFile::create(const std::string& path, mode_t mode) {
  UnpublishedFile file;
  TRY_ASSIGN(file.target_, OwnedPath::open(path));
  const int directory = file.target_.directory();
  file.fd_ = UniqueFd(::openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode));
  if (!file.fd_) {
    TRY_ASSIGN(file.temporary_, OwnedPath::open(fmt::format("{}.{}.tmp", path, ::getpid())));
    file.fd_ = UniqueFd(::openat(directory, file.temporary_.name().c_str(),
                                 O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode));
    if (!file.fd_) {
      return fail_errno(errno, path);
    }
    file.temporary_.take();
  }
  return file;
}

Result<bool> UnpublishedFile::publish() {
  const std::string own = fmt::format("/proc/self/fd/{}", fd_.get());
  const char* const name = target_.name().c_str();
  const int failed =
      temporary_.directory() < 0
          ? ::linkat(AT_FDCWD, own.c_str(), target_.directory(), name, AT_SYMLINK_FOLLOW)
          : ::renameat2(temporary_.directory(), temporary_.name().c_str(), target_.directory(),
                        name, RENAME_NOREPLACE);
  if (failed != 0) {
    return errno == EEXIST ? Result<bool>(false) : fail_errno(errno, target_.name());
  }
  TRY(sync_directory());
  return true;
}

Result<> UnpublishedFile::replace() {
  if (temporary_.directory() < 0) {
    // A name to rename from, no longer than one may be. One that a killed process has left is of no
    // use to anybody.
    const std::string name = fmt::format("{}.{}.tmp", target_.name().substr(0, 200), ::getpid());
    const std::string own = fmt::format("/proc/self/fd/{}", fd_.get());
    ::unlinkat(target_.directory(), name.c_str(), 0);
    if (::linkat(AT_FDCWD, own.c_str(), target_.directory(), name.c_str(), AT_SYMLINK_FOLLOW) < 0) {
      return fail_errno(errno, name);
    }
    if (::renameat(target_.directory(), name.c_str(), target_.directory(), target_.name().c_str()) <
        0) {
      const int error = errno;
      ::unlinkat(target_.directory(), name.c_str(), 0);
      return fail_errno(error, target_.name());
    }
  } else if (::renameat(temporary_.directory(), temporary_.name().c_str(), target_.directory(),
                        target_.name().c_str()) < 0) {
    return fail_errno(errno, target_.name());
  }
  return sync_directory();
}

Result<> UnpublishedFile::sync_directory() const {
  const UniqueFd directory(::openat(target_.directory(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory || ::fsync(directory.get()) != 0) {
    return fail_errno(errno, "syncing the directory of " + target_.name());
  }
  return {};
}

Result<> UnpublishedFile::remove_target() const {
  return ::unlinkat(target_.directory(), target_.name().c_str(), 0) == 0
             ? Result<>()
             : fail_errno(errno, target_.name());
}

}  // namespace vireo
