// SPDX-License-Identifier: Apache-2.0
#include "src/allowed_paths.h"

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

namespace vireo {

namespace {

/// The kernel asks to try again where something was renamed while it went up by "..".
constexpr unsigned kTries = 64;

/// `path` without what says nothing: "//a/./b/" is "/a/b", and "/" is "".
std::string plain(std::string_view path) {
  std::string text;
  while (!path.empty()) {
    const std::size_t end = path.find('/');
    const std::string_view part = path.substr(0, end);
    if (!part.empty() && part != ".") {
      text += '/';
      text += part;
    }
    path.remove_prefix(end == std::string_view::npos ? path.size() : end + 1);
  }
  return text;
}

/// What is behind `prefix` in `path`, without its slash; both plain, and `path` begins with it.
std::string_view behind(std::string_view path, std::string_view prefix) {
  path.remove_prefix(prefix.size());
  return path.empty() ? path : path.substr(1);
}

/// The path of a file without links.
Result<std::string> resolved(const std::string& path) {
  struct Free {
    void operator()(char* text) const { std::free(text); }  // NOLINT(*-no-malloc)
  };
  const std::unique_ptr<char, Free> text(::realpath(path.c_str(), nullptr));
  if (!text) {
    return fail_errno(errno, path);
  }
  return std::string(text.get());
}

Result<struct stat> status_of(int fd, const std::string& path) {
  struct stat status = {};
  if (::fstat(fd, &status) < 0) {
    return fail_errno(errno, path);
  }
  return status;
}

}  // namespace

Result<AllowedPaths::Entry> AllowedPaths::open_entry(const std::string& path) {
  Entry entry = {.path = plain(path), .itself = {}, .directory = {}, .name = {}};
  TRY_ASSIGN(entry.itself, vireo::open_file(path, O_PATH));
  TRY_ASSIGN(const struct stat status, status_of(entry.itself.get(), path));
  if (S_ISDIR(status.st_mode)) {
    return entry;
  }
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return fail(ErrorCode::kConfig,
                path + ": neither a directory, nor a regular file, nor a block device");
  }
  TRY_ASSIGN(const std::string file, resolved(path));
  const std::size_t name = file.rfind('/') + 1;
  entry.name = file.substr(name);
  TRY_ASSIGN(entry.directory, vireo::open_file(file.substr(0, name), O_PATH | O_DIRECTORY));
  return entry;
}

Result<AllowedPaths> AllowedPaths::open(const std::vector<std::string>& paths) {
  AllowedPaths allowed;
  for (const std::string& path : paths) {
    TRY_ASSIGN(Entry entry, open_entry(path));
    allowed.entries_.push_back(std::move(entry));
  }
  return allowed;
}

/// The one that names most of `path`, which is plain; null where none does.
const AllowedPaths::Entry* AllowedPaths::find(std::string_view path) const {
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    const bool is_directory = entry.name.empty();
    const bool names =
        path.starts_with(entry.path) &&
        (path.size() == entry.path.size() || (is_directory && path[entry.path.size()] == '/'));
    if (names && (found == nullptr || entry.path.size() > found->path.size())) {
      found = &entry;
    }
  }
  return found;
}

bool AllowedPaths::cover(std::string_view path) const {
  return path.starts_with('/') && find(plain(path)) != nullptr;
}

Result<UniqueFd> AllowedPaths::open_file(const std::string& path, int flags) const {
  CHECK(cover(path));
  const std::string wanted = plain(path);
  const Entry& entry = *find(wanted);
  const bool is_directory = entry.name.empty();
  open_how how = {};
  how.flags = static_cast<std::uint32_t>(flags | O_CLOEXEC);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  int from = entry.itself.get();
  std::string name(behind(wanted, entry.path));
  if (!is_directory) {
    // What has this name now, and not what a link leads to.
    how.resolve |= RESOLVE_NO_SYMLINKS;
    from = entry.directory.get();
    name = entry.name;
  } else if (name.empty()) {
    name = ".";
  }
  long result = -1;
  unsigned tries = 0;
  do {
    result = ::syscall(SYS_openat2, from, name.c_str(), &how, sizeof(how));
  } while (result < 0 && errno == EAGAIN && ++tries < kTries);
  if (result < 0 && errno == EXDEV) {
    return fail(ErrorCode::kPermission,
                fmt::format("{}: leads out of {}, which sandbox.allow_paths has: by \"..\", a link "
                            "or another file system",
                            path, entry.path.empty() ? "/" : entry.path));
  }
  if (result < 0) {
    return fail_errno(errno, path);
  }
  UniqueFd file(static_cast<int>(result));
  if (!is_directory) {
    TRY_ASSIGN(const struct stat was, status_of(entry.itself.get(), path));
    TRY_ASSIGN(const struct stat is, status_of(file.get(), path));
    if (was.st_dev != is.st_dev || was.st_ino != is.st_ino) {
      return fail(ErrorCode::kPermission, path + ": another file than at the VM's start");
    }
  }
  return file;
}

std::vector<int> AllowedPaths::descriptors() const {
  std::vector<int> all;
  for (const Entry& entry : entries_) {
    all.push_back(entry.itself.get());
  }
  return all;
}

}  // namespace vireo
