// SPDX-License-Identifier: Apache-2.0
#include "src/base/fd.h"

#include <array>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace vireo {

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int UniqueFd::release() {
  return std::exchange(fd_, -1);
}

void UniqueFd::reset() {
  if (fd_ >= 0) {
    ::close(std::exchange(fd_, -1));
  }
}

Result<UniqueFd> open_file(const std::string& path, int flags, mode_t mode) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) {
    return fail_errno(errno, path);
  }
  return UniqueFd(fd);
}

Result<std::string> read_small_text(int directory, const std::string& path) {
  const UniqueFd file(::openat(directory, path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 4096> buffer = {};
  const ssize_t size = file ? ::read(file.get(), buffer.data(), buffer.size()) : -1;
  if (size < 0) {
    return fail_errno(errno, path);
  }
  std::string text(buffer.data(), static_cast<std::size_t>(size));
  if (text.ends_with('\n')) {
    text.pop_back();
  }
  return text;
}

Result<UniqueFd> create_eventfd() {
  const int fd = ::eventfd(0, EFD_CLOEXEC);
  if (fd < 0) {
    return fail_errno(errno, "eventfd");
  }
  return UniqueFd(fd);
}

void signal_eventfd(int fd) {
  const std::uint64_t one = 1;
  ssize_t written = 0;
  do {
    written = ::write(fd, &one, sizeof(one));
  } while (written < 0 && errno == EINTR);
  CHECK(written == sizeof(one));
}

Result<> read_full_at(int fd, std::span<std::byte> buffer, std::uint64_t offset) {
  while (!buffer.empty()) {
    const ssize_t count = ::pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(offset));
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      return fail_errno(errno, "reading");
    }
    if (count == 0) {
      return fail(ErrorCode::kBadInput, "the file ends too early (truncated?)");
    }
    buffer = buffer.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

Result<> write_full(int fd, std::span<const std::byte> buffer) {
  while (!buffer.empty()) {
    const ssize_t count = ::write(fd, buffer.data(), buffer.size());
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      return fail_errno(errno, "writing");
    }
    buffer = buffer.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

Result<std::uint64_t> regular_file_size(int fd) {
  struct stat status = {};
  if (::fstat(fd, &status) < 0) {
    return fail_errno(errno, "fstat");
  }
  if (!S_ISREG(status.st_mode)) {
    return fail(ErrorCode::kBadInput, "not a regular file");
  }
  return static_cast<std::uint64_t>(status.st_size);
}

Result<> check_takes_text(int fd) {
  struct stat status = {};
  if (::fstat(fd, &status) < 0) {
    return fail_errno(errno, "fstat");
  }
  int listening = 0;
  socklen_t size = sizeof(listening);
  const bool listens = S_ISSOCK(status.st_mode) &&
                       ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 &&
                       listening != 0;
  if (S_ISBLK(status.st_mode) || S_ISDIR(status.st_mode) || listens) {
    return fail(ErrorCode::kConfig, "wants a file, a pipe, a terminal or a connected socket");
  }
  return {};
}

Result<Mapping> Mapping::create(std::size_t size, int protection, int flags, int fd,
                                std::uint64_t offset, std::string_view what) {
  void* data = ::mmap(nullptr, size, protection, flags, fd, static_cast<off_t>(offset));
  if (data == MAP_FAILED) {
    return fail_errno(errno, what);
  }
  return Mapping(static_cast<std::byte*>(data), size);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void Mapping::trim(std::size_t offset, std::size_t size) {
  CHECK(offset <= size_ && size <= size_ - offset);
  if (offset > 0) {
    ::munmap(data_, offset);
  }
  if (offset + size < size_) {
    ::munmap(data_ + offset + size, size_ - offset - size);
  }
  data_ += offset;
  size_ = size;
}

Mapping::~Mapping() {
  if (data_ != nullptr) {
    ::munmap(data_, size_);
  }
}

}  // namespace vireo
