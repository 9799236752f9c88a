// SPDX-License-Identifier: Apache-2.0
#include "src/pid_file.h"

#include <array>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/fd_path.h"

namespace vireo {

namespace {

/// Whether `path` still is the file behind `fd`: its last owner may have removed it meanwhile.
bool is_still_there(const std::string& path, int fd) {
  struct stat by_path = {};
  struct stat by_fd = {};
  return ::stat(path.c_str(), &by_path) == 0 && ::fstat(fd, &by_fd) == 0 &&
         by_path.st_ino == by_fd.st_ino && by_path.st_dev == by_fd.st_dev;
}

std::string owner_of(int fd) {
  std::array<char, 32> text = {};
  const ssize_t count = ::pread(fd, text.data(), text.size() - 1, 0);
  std::string pid(text.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
  pid.erase(pid.find_last_not_of('\n') + 1);
  return pid;
}

}  // namespace

Result<bool> PidFile::try_create(const std::string& path) {
  constexpr int kFlags = O_RDWR | O_CREAT | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK;
  TRY_ASSIGN(UniqueFd file, open_path(path, kFlags, 0644));
  if (auto size = regular_file_size(file.get()); !size) {
    return std::unexpected(std::move(size).error().context(path).with_code(ErrorCode::kConfig));
  }
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(file.get(), F_OFD_SETLK, &lock) < 0) {
    return fail(ErrorCode::kSystem,
                fmt::format("{} belongs to the running process {}", path, owner_of(file.get())));
  }
  if (!is_inherited(path) && !is_still_there(path, file.get())) {
    return false;
  }
  const std::string text = fmt::format("{}\n", ::getpid());
  // An inherited file may stand anywhere; what is in it is one number.
  if (::ftruncate(file.get(), 0) < 0 || ::lseek(file.get(), 0, SEEK_SET) < 0) {
    return fail_errno(errno, path);
  }
  file_ = std::move(file);
  inherited_ = is_inherited(path);
  if (!inherited_) {
    TRY_ASSIGN(name_, OwnedPath::open(path));
    name_.take();
  }
  if (auto written = write_full(file_.get(), std::as_bytes(std::span(text))); !written) {
    return std::unexpected(std::move(written).error().context(path));
  }
  return true;
}

Result<> PidFile::create(const std::string& path) {
  for (;;) {
    auto created = try_create(path);
    if (!created) {
      return std::unexpected(std::move(created).error().context("process.pid_file"));
    }
    if (*created) {
      return {};
    }
  }
}

PidFile::~PidFile() {
  if (inherited_) {
    [[maybe_unused]] const int result = ::ftruncate(file_.get(), 0);
  }
}

}  // namespace vireo
