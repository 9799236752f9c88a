// SPDX-License-Identifier: Apache-2.0
#include "src/pid_file.h"

#include <array>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

namespace vireo {

namespace {

/// Whether `path` still is the file behind `fd`: its last owner may have removed it meanwhile.
bool is_still_there(const std::string& path, int fd) {
  struct stat by_path = {};
  struct stat by_fd = {};
  return ::stat(path.c_str(), &by_path) == 0 && ::fstat(fd, &by_fd) == 0 &&
         by_path.st_ino == by_fd.st_ino && by_path.st_dev == by_fd.st_dev;
}

}  // namespace

Result<> PidFile::create(const std::string& path) {
  for (;;) {
    auto opened = open_file(path, O_RDWR | O_CREAT | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK, 0644);
    if (!opened) {
      return std::unexpected(std::move(opened).error().context("process.pid_file"));
    }
    UniqueFd file = std::move(*opened);
    if (auto size = regular_file_size(file.get()); !size) {
      return std::unexpected(
          std::move(size).error().context(fmt::format("process.pid_file: {}", path)));
    }
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    if (::fcntl(file.get(), F_OFD_SETLK, &lock) < 0) {
      std::array<char, 32> owner = {};
      const ssize_t count = ::pread(file.get(), owner.data(), owner.size() - 1, 0);
      std::string pid(owner.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
      pid.erase(pid.find_last_not_of('\n') + 1);
      return fail(ErrorCode::kSystem,
                  fmt::format("process.pid_file: {} belongs to the running process {}", path, pid));
    }
    if (!is_still_there(path, file.get())) {
      continue;
    }
    const std::string text = fmt::format("{}\n", ::getpid());
    if (::ftruncate(file.get(), 0) < 0) {
      return fail_errno(errno, fmt::format("process.pid_file: {}", path));
    }
    file_ = std::move(file);
    path_ = path;
    auto written = write_full(file_.get(), std::as_bytes(std::span(text)));
    if (!written) {
      return std::unexpected(
          std::move(written).error().context(fmt::format("process.pid_file: {}", path)));
    }
    return {};
  }
}

PidFile::~PidFile() {
  if (file_) {
    ::unlink(
        path_.c_str());  // still locked: a successor waits for a file that is gone, and retries
  }
}

}  // namespace vireo
