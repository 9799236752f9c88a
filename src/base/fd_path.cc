// SPDX-License-Identifier: Apache-2.0
#include "src/base/fd_path.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>

#include <fcntl.h>
#include <unistd.h>

#include "src/base/environment.h"

namespace vireo {

namespace {

constexpr std::string_view kFdPrefix = "fd:";
/// sd_listen_fds(3): the first descriptor that a service manager hands over.
constexpr int kListenFdsStart = 3;
/// The longest name that a service manager gives a descriptor.
constexpr std::size_t kNameMax = 255;

std::optional<int> parse_int(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    return std::nullopt;
  }
  return value;
}

/// The descriptor called `name` in LISTEN_FDNAMES, if that was meant for this process.
std::optional<int> named_fd(std::string_view name) {
  const std::optional<std::uint64_t> count = environment_number("LISTEN_FDS");
  const char* const names = std::getenv("LISTEN_FDNAMES");
  if (!count || names == nullptr ||
      environment_number("LISTEN_PID") != static_cast<std::uint64_t>(::getpid())) {
    return std::nullopt;
  }
  std::string_view rest = names;
  for (std::uint64_t i = 0; i < *count; ++i) {
    const std::size_t colon = rest.find(':');
    if (rest.substr(0, colon) == name) {
      return kListenFdsStart + static_cast<int>(i);
    }
    if (colon == std::string_view::npos) {
      break;
    }
    rest.remove_prefix(colon + 1);
  }
  return std::nullopt;
}

bool allows(int flags, int access) {
  const int mode = flags & O_ACCMODE;
  return (flags & O_PATH) == 0 && (mode == O_RDWR || mode == access);
}

std::string_view words_of(int access) {
  switch (access) {
    case O_RDONLY:
      return "reading";
    case O_WRONLY:
      return "writing";
    default:
      return "reading and writing";
  }
}

}  // namespace

bool is_inherited(std::string_view path) {
  return path.starts_with(kFdPrefix);
}

std::string_view wrong_fd_path(std::string_view path) {
  if (!is_inherited(path)) {
    return {};
  }
  const std::string_view name = path.substr(kFdPrefix.size());
  const auto allowed = [](char c) { return c >= ' ' && c <= '~' && c != ':'; };
  if (name.empty() || name.size() > kNameMax || !std::ranges::all_of(name, allowed)) {
    return "wants fd:N, or fd:NAME with a name of LISTEN_FDNAMES";
  }
  return {};
}

Result<UniqueFd> open_inherited(const std::string& path, int access) {
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
  // What is closed at an exec was not inherited: it is one of our own.
  if (flags < 0 || (::fcntl(*number, F_GETFD) & FD_CLOEXEC) != 0) {
    return fail(ErrorCode::kMissingInput, path + ": no such descriptor was inherited");
  }
  if (!allows(flags, access)) {
    return fail(access == O_RDONLY ? ErrorCode::kBadInput : ErrorCode::kConfig,
                path + ": the descriptor is not open for " + std::string(words_of(access)));
  }
  // A copy of our own: two settings may name one descriptor, and each closes what it holds.
  const int copy = ::fcntl(*number, F_DUPFD_CLOEXEC, kListenFdsStart);
  if (copy < 0) {
    return fail_errno(errno, path);
  }
  return UniqueFd(copy);
}

Result<UniqueFd> open_path(const std::string& path, int flags, mode_t mode) {
  return is_inherited(path) ? open_inherited(path, flags & O_ACCMODE)
                            : open_file(path, flags, mode);
}

}  // namespace vireo
