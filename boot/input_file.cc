// SPDX-License-Identifier: Apache-2.0
#include "boot/input_file.h"

#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>

#include <fmt/core.h>

#include "src/base/fd_path.h"

namespace vireo {

namespace {

Result<UniqueFd> open_by_name(const std::string& path) {
  // Non-blocking, or a pipe without a writer would hold us up here.
  auto fd = open_file(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (fd) {
    return fd;
  }
  switch (fd.error().errnum()) {
    case ENOTDIR:
    case ELOOP:
    case ENAMETOOLONG:
      return std::unexpected(std::move(fd).error().with_code(ErrorCode::kMissingInput));
    case ENXIO:  // what opening a socket says
      return fail(ErrorCode::kBadInput, path + ": not a regular file");
    default:
      return fd;
  }
}

const char* kind_of(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return "a directory";
    case S_IFIFO:
      return "a pipe";
    case S_IFSOCK:
      return "a socket";
    case S_IFCHR:
    case S_IFBLK:
      return "a device";
    default:
      return "something else";
  }
}

std::uint64_t nanoseconds(const timespec& time) {
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(time.tv_nsec);
}

}  // namespace

Result<InputFile> InputFile::open(const std::string& path, std::string_view setting) {
  auto fd = is_inherited(path) ? open_inherited(path, O_RDONLY) : open_by_name(path);
  if (!fd) {
    return std::unexpected(std::move(fd).error().context(setting));
  }
  InputFile file(std::move(*fd), path);
  auto identity = file.current_identity();
  if (!identity) {
    return std::unexpected(std::move(identity).error().context(setting));
  }
  file.identity_ = *identity;
  return file;
}

Result<FileIdentity> InputFile::current_identity() const {
  struct stat status = {};
  if (::fstat(fd_.get(), &status) < 0) {
    return fail_errno(errno, path_);
  }
  if (!S_ISREG(status.st_mode)) {
    return fail(ErrorCode::kBadInput,
                fmt::format("{}: {}, not a regular file", path_, kind_of(status.st_mode)));
  }
  return FileIdentity{.device = status.st_dev,
                      .inode = status.st_ino,
                      .size_bytes = static_cast<std::uint64_t>(status.st_size),
                      .mtime_ns = nanoseconds(status.st_mtim),
                      .ctime_ns = nanoseconds(status.st_ctim)};
}

}  // namespace vireo
