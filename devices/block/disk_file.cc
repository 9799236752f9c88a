// SPDX-License-Identifier: Apache-2.0
#include "devices/block/disk_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <linux/fs.h>
// For struct statx with its newest fields; <sys/stat.h> has another one.
#include <linux/stat.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/fd_path.h"

namespace vireo {

namespace {

constexpr std::uint32_t kSectorSize = 512;
constexpr std::uint32_t kPageSize = 4096;

Result<struct statx> status_of(int fd) {
  struct statx status = {};
  if (::syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, &status) <
      0) {
    return fail_errno(errno, "statx");
  }
  return status;
}

// Locks
// --------------------------------------------------------------------------------------------
//
// An open file description lock over all bytes but the last one a file can have: whoever else locks
// images by any range of bytes is kept out too. That kind of lock does not tell its holder, so a
// traditional one on the last byte does. It also keeps out who was handed the same description.

constexpr off_t kLastByte = std::numeric_limits<off_t>::max();

struct flock range_lock(bool writable) {
  struct flock lock = {};
  lock.l_type = static_cast<short>(writable ? F_WRLCK : F_RDLCK);
  lock.l_whence = SEEK_SET;
  lock.l_start = 0;
  lock.l_len = kLastByte;
  return lock;
}

struct flock holder_lock(bool writable) {
  struct flock lock = range_lock(writable);
  lock.l_start = kLastByte;
  lock.l_len = 1;
  return lock;
}

Error locked_by_another(int fd, bool writable) {
  struct flock holder = holder_lock(true);
  std::string who = "another program";
  if (::fcntl(fd, F_GETLK, &holder) == 0 && holder.l_type != F_UNLCK && holder.l_pid > 0) {
    who = fmt::format("process {}", holder.l_pid);
  } else if (holder.l_type == F_UNLCK) {
    who = "this VM, or a program that does not tell its process id";
  }
  return {ErrorCode::kSystem, fmt::format("in use by {}: {}", who,
                                          writable ? "a disk that is written to is one VM's alone"
                                                   : "it is written to, and so cannot be shared")};
}

Result<> lock_file(int fd, bool writable) {
  struct flock range = range_lock(writable);
  struct flock holder = holder_lock(writable);
  if (::fcntl(fd, F_OFD_SETLK, &range) == 0 && ::fcntl(fd, F_SETLK, &holder) == 0) {
    return {};
  }
  if (errno == EAGAIN || errno == EACCES) {
    return std::unexpected(locked_by_another(fd, writable));
  }
  if (!writable) {
    return {};  // a file system without locks; nothing is lost by reading
  }
  return fail_errno(errno, "locking it, which keeps other VMs from writing to it");
}

// Limits
// -------------------------------------------------------------------------------------------

Result<> read_block_device_limits(DiskFile& file) {
  const int fd = file.fd.get();
  int logical = 0;
  unsigned physical = 0;
  unsigned optimal = 0;
  TRY(try_ioctl(fd, BLKSSZGET, &logical, "BLKSSZGET"));
  TRY(try_ioctl(fd, BLKPBSZGET, &physical, "BLKPBSZGET"));
  TRY(try_ioctl(fd, BLKIOOPT, &optimal, "BLKIOOPT"));
  file.limits.block_size = std::max(kSectorSize, static_cast<std::uint32_t>(logical));
  file.limits.physical_block_size = std::max(file.limits.block_size, physical);
  file.limits.optimal_size = optimal;
  return {};
}

/// For a file system that does not tell: a page always suits, and a sector is tried.
std::uint32_t tried_offset_alignment(int fd) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }  // NOLINT(*-no-malloc)
  };
  // NOLINTNEXTLINE(*-no-malloc): aligned
  const std::unique_ptr<void, Free> page(std::aligned_alloc(kPageSize, kPageSize));
  return ::pread(fd, page.get(), kSectorSize, 0) < 0 && errno == EINVAL ? kPageSize : kSectorSize;
}

Result<> read_direct_limits(const struct statx& status, DiskFile& file) {
  if ((status.stx_mask & STATX_DIOALIGN) == 0) {
    file.limits.memory_alignment = kPageSize;
    file.limits.block_size =
        std::max(file.limits.block_size, tried_offset_alignment(file.fd.get()));
    return {};
  }
  if (status.stx_dio_offset_align == 0) {
    return fail(ErrorCode::kConfig,
                "direct: its file system has no direct I/O for it; leave direct out");
  }
  file.limits.memory_alignment = std::max(1U, status.stx_dio_mem_align);
  file.limits.block_size = std::max(file.limits.block_size, status.stx_dio_offset_align);
  if (file.limits.block_size > kPageSize) {
    return fail(ErrorCode::kConfig,
                fmt::format("direct: its file system wants blocks of {} bytes, more than a guest "
                            "takes (4096); leave direct out",
                            file.limits.block_size));
  }
  return {};
}

/// The status flags as reads and writes want them; whether I/O is direct.
Result<bool> settle_flags(int fd, const DiskFileOptions& options) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ((flags & O_NONBLOCK) != 0 && ::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)) {
    return fail_errno(errno, "fcntl");
  }
  const int access = flags & O_ACCMODE;
  if (access == O_WRONLY || (options.writable && access != O_RDWR)) {
    return fail(ErrorCode::kConfig, fmt::format("the descriptor was opened without the right to {}",
                                                options.writable ? "read and write" : "read"));
  }
  const bool direct = (flags & O_DIRECT) != 0;
  if (options.direct && !direct) {
    return fail(ErrorCode::kConfig, "direct: the descriptor was opened without O_DIRECT");
  }
  return direct;
}

}  // namespace

Result<std::uint64_t> disk_file_size(const DiskFile& file) {
  const off_t size = ::lseek(file.fd.get(), 0, SEEK_END);
  if (size < 0) {
    return fail_errno(errno, "lseek");
  }
  const auto bytes = static_cast<std::uint64_t>(size);
  if (bytes == 0) {
    return fail(ErrorCode::kBadInput, "it is empty");
  }
  if (bytes % file.limits.block_size != 0) {
    return fail(ErrorCode::kBadInput,
                fmt::format("its size is no multiple of {} bytes; truncate --size=%{} pads it",
                            file.limits.block_size, file.limits.block_size));
  }
  return bytes;
}

Result<UniqueFd> open_image_file(const std::string& path, const DiskFileOptions& options) {
  return open_image_file(path, options,
                         [](const std::string& name, int flags) { return open_path(name, flags); });
}

Result<UniqueFd> open_image_file(const std::string& path, const DiskFileOptions& options,
                                 const FileOpener& open) {
  const int flags = (options.writable ? O_RDWR : O_RDONLY) | (options.direct ? O_DIRECT : 0);
  // Not to wait for the other end of a pipe; cleared later.
  auto fd = open(path, flags | O_NONBLOCK | O_NOCTTY);
  if (!fd && options.direct && fd.error().errnum() == EINVAL) {
    return fail(ErrorCode::kConfig,
                path + ": direct: its file system has no direct I/O; leave direct out");
  }
  if (!fd || !options.writable || is_inherited(path)) {
    return fd;
  }
  // A writable device is claimed, so that the host does not use it meanwhile.
  auto status = status_of(fd->get());
  if (!status) {
    return std::unexpected(std::move(status).error().context(path));
  }
  if ((status->stx_mode & S_IFMT) != S_IFBLK) {
    return fd;
  }
  auto claimed = open(path, flags | O_EXCL);
  if (!claimed && claimed.error().errnum() == EBUSY) {
    return fail(ErrorCode::kSystem,
                path + ": in use by the host (mounted, or part of another device)");
  }
  return claimed;
}

Result<DiskFile> adopt_disk_file(UniqueFd fd, const DiskFileOptions& options) {
  DiskFile file{.fd = std::move(fd)};
  TRY_ASSIGN(const struct statx status, status_of(file.fd.get()));
  const auto type = status.stx_mode & S_IFMT;
  file.block_device = type == S_IFBLK;
  if (type != S_IFREG && type != S_IFBLK) {
    return fail(ErrorCode::kBadInput, "neither a regular file nor a block device");
  }
  if (file.block_device) {
    TRY(read_block_device_limits(file));
  } else {
    file.limits.physical_block_size =
        std::clamp(std::uint32_t{status.stx_blksize}, kSectorSize, kPageSize);
  }
  TRY_ASSIGN(file.direct, settle_flags(file.fd.get(), options));
  if (file.direct) {
    TRY(read_direct_limits(status, file));
  }
  TRY(lock_file(file.fd.get(), options.writable));
  TRY_ASSIGN(file.size, disk_file_size(file));
  return file;
}

Result<> make_shared_file(DiskFile& file) {
  if (file.direct) {
    if (::fcntl(file.fd.get(), F_SETFL, ::fcntl(file.fd.get(), F_GETFL) & ~O_DIRECT) < 0) {
      return fail_errno(errno, "fcntl");
    }
    file.direct = false;
    file.limits.memory_alignment = 1;
  }
  return lock_file(file.fd.get(), false);
}

Result<DiskFile> open_disk_file(const std::string& path, const DiskFileOptions& options) {
  TRY_ASSIGN(UniqueFd fd, open_image_file(path, options));
  auto file = adopt_disk_file(std::move(fd), options);
  if (!file) {
    return std::unexpected(std::move(file).error().context(path));
  }
  return file;
}

}  // namespace vireo
