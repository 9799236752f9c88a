// SPDX-License-Identifier: Apache-2.0
#include "src/base/unpublished_file.h"

#include <cerrno>
#include <cstdio>
#include <span>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/checksum.h"

namespace vireo {

namespace {

/// What a file that is to replace `target` is called in between; another one for each target.
std::string name_between(const std::string& target) {
  constexpr std::size_t kPart = 200;  // of the 255 bytes that a name may have
  return target.size() <= kPart ? fmt::format(".{}.vireo", target)
                                : fmt::format(".{}.{:016x}.vireo", target.substr(0, kPart),
                                              checksum(std::as_bytes(std::span(target))));
}

}  // namespace

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
  const bool has_name = temporary_.directory() >= 0;
  if (has_name && ::renameat(temporary_.directory(), temporary_.name().c_str(), target_.directory(),
                             target_.name().c_str()) < 0) {
    return fail_errno(errno, target_.name());
  }
  if (!has_name) {
    TRY(replace_by_link());
  }
  return sync_directory();
}

/// Renaming wants a name to rename from, and all who replace the same file take the same one. What
/// has it already is another one's who is as far as this, or was killed there: it is whole and gets
/// the target's name first.
Result<> UnpublishedFile::replace_by_link() {
  const std::string name = name_between(target_.name());
  const std::string own = fmt::format("/proc/self/fd/{}", fd_.get());
  const auto rename = [&] {
    return ::renameat(target_.directory(), name.c_str(), target_.directory(),
                      target_.name().c_str()) == 0 ||
           errno == ENOENT;  // another one has done it
  };
  while (::linkat(AT_FDCWD, own.c_str(), target_.directory(), name.c_str(), AT_SYMLINK_FOLLOW) <
         0) {
    if (errno != EEXIST) {
      return fail_errno(errno, name);
    }
    if (!rename()) {
      return fail_errno(errno, target_.name());
    }
  }
  if (!rename()) {
    const int error = errno;
    ::unlinkat(target_.directory(), name.c_str(), 0);
    return fail_errno(error, target_.name());
  }
  return {};
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
