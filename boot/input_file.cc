// SPDX-License-Identifier: Apache-2.0
#include "boot/input_file.h"

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

namespace vireo {

namespace {

constexpr std::string_view kFdPrefix = "fd:";
/// sd_listen_fds(3): the first descriptor that a service manager hands over.
constexpr int kListenFdsStart = 3;

std::optional<int> parse_int(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    return std::nullopt;
  }
  return value;
}

std::optional<int> environment_int(const char* name) {
  const char* const text = std::getenv(name);
  return text == nullptr ? std::nullopt : parse_int(text);
}

/// The descriptor called `name` in LISTEN_FDNAMES, if that was meant for this process.
std::optional<int> named_fd(std::string_view name) {
  const std::optional<int> count = environment_int("LISTEN_FDS");
  const char* const names = std::getenv("LISTEN_FDNAMES");
  if (!count || names == nullptr || environment_int("LISTEN_PID") != ::getpid()) {
    return std::nullopt;
  }
  std::string_view rest = names;
  for (int i = 0; i < *count; ++i) {
    const std::size_t colon = rest.find(':');
    if (rest.substr(0, colon) == name) {
      return kListenFdsStart + i;
    }
    if (colon == std::string_view::npos) {
      break;
    }
    rest.remove_prefix(colon + 1);
  }
  return std::nullopt;
}

Result<UniqueFd> open_path(const std::string& path) {
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

bool is_inherited(const std::string& path) {
  return path.starts_with(kFdPrefix);
}

Result<UniqueFd> open_inherited(const std::string& path) {
  const std::string_view name = std::string_view(path).substr(kFdPrefix.size());
  std::optional<int> number = parse_int(name);
  if (!number) {
    number = named_fd(name);
  }
  if (!number) {
    return fail(ErrorCode::kMissingInput,
                path + ": no inherited descriptor has this name (LISTEN_FDNAMES)");
  }
  const int flags = ::fcntl(*number, F_GETFL);
  if (flags < 0) {
    return fail(ErrorCode::kMissingInput, path + ": no such descriptor was inherited");
  }
  if ((flags & O_PATH) != 0 || (flags & O_ACCMODE) == O_WRONLY) {
    return fail(ErrorCode::kBadInput, path + ": the descriptor is not open for reading");
  }
  // A copy of our own: two settings may name one descriptor, and each closes what it holds.
  const int copy = ::fcntl(*number, F_DUPFD_CLOEXEC, kListenFdsStart);
  if (copy < 0) {
    return fail_errno(errno, path);
  }
  return UniqueFd(copy);
}

Result<InputFile> InputFile::open(const std::string& path, std::string_view setting) {
  auto fd = is_inherited(path) ? open_inherited(path) : open_path(path);
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
