// SPDX-License-Identifier: Apache-2.0
// Owners of what the kernel hands out: descriptors and mappings. Made at the call that creates the
// thing; raw descriptors are passed on as plain ints that own nothing.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <sys/ioctl.h>
#include <sys/types.h>

#include "src/base/error.h"

namespace vireo {

/// Owns one descriptor and closes it. Any thread; move-only.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  /// Gives the descriptor up without closing it.
  int release();
  void reset();

 private:
  int fd_ = -1;
};

/// open(2) with O_CLOEXEC; the error names the path.
Result<UniqueFd> open_file(const std::string& path, int flags, mode_t mode = 0);

/// A counter eventfd, close-on-exec: kicks in, interrupts out. Blocking, because io_uring answers
/// EAGAIN for a READ of a non-blocking one instead of waiting.
Result<UniqueFd> create_eventfd();
/// Adds 1 to an eventfd. Any thread. Never blocks in practice: the counter would have to reach
/// 2^64-2.
void signal_eventfd(int fd);

/// What the kernel shows in a small file (below /proc, /sys), without the newline at its end; at
/// most 4 KiB. `path` from `directory`, which may be AT_FDCWD.
Result<std::string> read_small_text(int directory, const std::string& path);
/// Reads exactly buffer.size() bytes at `offset`; a file that ends before is kBadInput.
Result<> read_full_at(int fd, std::span<std::byte> buffer, std::uint64_t offset);
/// Writes all bytes at the descriptor's position, however many calls that takes.
Result<> write_full(int fd, std::span<const std::byte> buffer);
/// The size of a regular file, in bytes; anything else (a directory, a pipe) is kBadInput.
Result<std::uint64_t> regular_file_size(int fd);

/// Refuses (kConfig) what no text can be written to one piece after the other: a block device, a
/// listening socket.
Result<> check_takes_text(int fd);

/// ioctl whose failure is an Error that begins with `what`; returns its non-negative result.
template <typename Argument>
Result<int> try_ioctl(int fd, unsigned long request, Argument argument, std::string_view what) {
  const int result = ::ioctl(fd, request, argument);
  if (result < 0) {
    return fail_errno(errno, what);
  }
  return result;
}

/// Owns one mmap()ed range and unmaps it. Move-only.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  /// mmap(2); `size` in bytes and not 0. The error begins with `what`.
  static Result<Mapping> create(std::size_t size, int protection, int flags, int fd,
                                std::uint64_t offset, std::string_view what);
  /// Takes over a range that was mapped already.
  static Mapping adopt(std::byte* data, std::size_t size) { return {data, size}; }

  /// Unmaps all but [offset, offset + size); both in whole pages.
  void trim(std::size_t offset, std::size_t size);

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  Mapping(std::byte* data, std::size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace vireo
