// SPDX-License-Identifier: Apache-2.0
#include "src/volume.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/fd.h"
#include "src/base/log.h"
#include "src/base/unpublished_file.h"
#include "src/config.h"
#include "src/config_value.h"

namespace vireo {

namespace {

constexpr const char* kLog = "volume";
/// Others may take the name away, or put an empty file there, each time that it was looked at.
constexpr int kTries = 10;
/// As many as ext4 has for its label.
constexpr std::size_t kLabelMax = 16;
/// Of a file that only this VM shall read.
constexpr mode_t kMode = 0600;

/// Whether the file is there and holds something, of the size that it shall have.
Result<bool> is_made(const VolumeConfig& volume, const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) {
    return errno == ENOENT ? Result<bool>(false) : fail_errno(errno, "path: " + path);
  }
  if (!S_ISREG(status.st_mode)) {
    return fail(ErrorCode::kConfig,
                fmt::format("path: {}: is no regular file; use it as a disk", path));
  }
  if (status.st_size == 0) {
    return false;
  }
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size == volume.size_bytes) {
    return true;
  }
  const std::string has =
      size % 1024 == 0 ? format_size(size) : fmt::format("{} bytes", status.st_size);
  const std::string wanted = format_size(volume.size_bytes);
  return fail(
      ErrorCode::kConfig,
      size < volume.size_bytes
          ? fmt::format("size: {} was made with {}; keep that, or grow it by \"truncate -s "
                        "{} FILE && e2fsck -f FILE && resize2fs FILE\"",
                        path, has, wanted)
          : fmt::format("size: {} was made with {}; it never shrinks, so keep that", path, has));
}

/// Holds the empty file that has the name, so that no other vireo puts another there. A file that
/// is not the one any more is none.
Result<UniqueFd> lock_empty(const std::string& path) {
  UniqueFd file(::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC));
  if (!file) {
    return errno == ENOENT ? Result<UniqueFd>() : fail_errno(errno, "path: " + path);
  }
  struct stat held = {};
  struct stat named = {};
  if (::flock(file.get(), LOCK_EX) != 0 || ::fstat(file.get(), &held) != 0) {
    return fail_errno(errno, "path: " + path);
  }
  const bool same = ::stat(path.c_str(), &named) == 0 && named.st_ino == held.st_ino &&
                    named.st_dev == held.st_dev && held.st_size == 0;
  return same ? Result<UniqueFd>(std::move(file)) : Result<UniqueFd>();
}

/// The owner and mode of the empty file, whose place the new one takes.
Result<> take_over(int fd, int empty) {
  struct stat status = {};
  if (::fstat(empty, &status) != 0 || ::fchown(fd, status.st_uid, status.st_gid) != 0 ||
      ::fchmod(fd, status.st_mode & 07777) != 0) {
    return fail_errno(errno, "path: giving the file the owner of the empty one");
  }
  return {};
}

Result<> fill(const VolumeConfig& volume, int fd, std::span<const std::string> directories) {
  constexpr std::array<std::string_view, 1> kNames = {"mke2fs"};
  const std::string mke2fs = find_program(directories, kNames);
  if (mke2fs.empty()) {
    return fail(ErrorCode::kSystem,
                "mke2fs is not there, which formats new volumes; install the package e2fsprogs");
  }
  if (::ftruncate(fd, static_cast<off_t>(volume.size_bytes)) != 0) {
    return fail_errno(errno, "path: " + volume.path);
  }
  // What the file does not hold reads as zeros: nothing needs to be zeroed or discarded now.
  TRY(run_program(
      {.path = mke2fs,
       .arguments = {"-q", "-F", "-t", "ext4", "-L", volume.id.substr(0, kLabelMax), "-E",
                     "nodiscard,lazy_itable_init=1,lazy_journal_init=1", HelperProgram::kFile},
       .file = fd}));
  return ::fsync(fd) == 0 ? Result<>() : fail_errno(errno, "path: " + volume.path);
}

/// One try; false where others were faster.
Result<bool> try_to_make(const VolumeConfig& volume, const std::string& path,
                         std::span<const std::string> directories) {
  TRY_ASSIGN(const bool made, is_made(volume, path));
  if (made) {
    return true;
  }
  const bool empty = ::access(path.c_str(), F_OK) == 0;
  UniqueFd held;
  if (empty) {
    TRY_ASSIGN(held, lock_empty(path));
    if (!held) {
      return false;
    }
  }
  TRY_ASSIGN(UnpublishedFile file, UnpublishedFile::create(path, kMode));
  if (held) {
    TRY(take_over(file.fd(), held.get()));
  }
  TRY(fill(volume, file.fd(), directories));
  if (held) {
    TRY(file.remove_target());
  }
  TRY_ASSIGN(const bool published, file.publish());
  if (published) {
    log_info(kLog, "{}: made {} of {}", volume.id, path, format_size(volume.size_bytes));
  }
  return published;
}

Result<> make(const VolumeConfig& volume, std::span<const std::string> directories) {
  // What a symbolic link names is made, and not put in its place.
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(volume.path.c_str(), nullptr),
                                                         &std::free);
  const std::string path = real ? real.get() : volume.path;
  struct stat status = {};
  if (!real && ::lstat(path.c_str(), &status) == 0) {
    return fail(ErrorCode::kMissingInput,
                fmt::format("path: {}: is a symbolic link to nothing; make what it names", path));
  }
  for (int i = 0; i < kTries; ++i) {
    TRY_ASSIGN(const bool done, try_to_make(volume, path, directories));
    if (done) {
      return {};
    }
  }
  return fail(ErrorCode::kSystem,
              fmt::format("path: {}: others make and remove it all the time", path));
}

}  // namespace

Result<> make_volume(const VolumeConfig& volume, std::span<const std::string> directories) {
  Result<> made = make(volume, directories);
  if (!made) {
    return std::unexpected(
        std::move(made).error().context(fmt::format("volume {}", quoted(volume.id))));
  }
  return {};
}

}  // namespace vireo
