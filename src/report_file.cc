// SPDX-License-Identifier: Apache-2.0
#include "src/report_file.h"

#include <cerrno>
#include <cstdio>
#include <span>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/fd_path.h"

namespace vireo {

namespace {

Result<UniqueFd> open_stream(const std::string& path) {
  // Non-blocking: a pipe that nobody reads is an error and not a wait.
  TRY_ASSIGN(UniqueFd file, open_path(path, O_WRONLY | O_NOCTTY | O_NONBLOCK));
  if (Result<> fit = check_takes_text(file.get()); !fit) {
    return std::unexpected(std::move(fit).error().context(path));
  }
  return file;
}

Result<UniqueFd> open_directory(const std::string& path) {
  UniqueFd directory(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!directory || ::faccessat(directory.get(), ".", W_OK | X_OK, AT_EACCESS) != 0) {
    return fail_errno(errno, path);
  }
  return directory;
}

}  // namespace

Result<ReportFile> ReportFile::open(const std::string& path, std::string_view key) {
  ReportFile file;
  file.what_ = fmt::format("{}: {}", key, path);
  struct stat status = {};
  const bool exists = !is_inherited(path) && ::stat(path.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) {
    return fail_errno(EISDIR, file.what_);
  }
  Result<UniqueFd> opened;
  if (is_inherited(path) || (exists && !S_ISREG(status.st_mode))) {
    opened = open_stream(path);
  } else {
    const std::size_t name = path.rfind('/') + 1;
    file.name_ = path.substr(name);
    opened = open_directory(name == 0 ? "." : path.substr(0, name));
  }
  if (!opened) {
    return std::unexpected(std::move(opened).error().context(key));
  }
  file.file_ = std::move(*opened);
  return file;
}

Result<> ReportFile::write(std::string_view text) const {
  Result<> written =
      name_.empty() ? write_full(file_.get(), std::as_bytes(std::span(text))) : replace(text);
  if (!written) {
    return std::unexpected(std::move(written).error().context(what_));
  }
  return {};
}

Result<> ReportFile::replace(std::string_view text) const {
  const std::string temporary = fmt::format("{}.{}.tmp", name_, ::getpid());
  const UniqueFd file(::openat(file_.get(), temporary.c_str(),
                               O_WRONLY | O_CREAT | O_EXCL | O_NOCTTY | O_CLOEXEC, 0644));
  if (!file) {
    return fail_errno(errno, "creating");
  }
  Result<> written = write_full(file.get(), std::as_bytes(std::span(text)));
  if (written && ::renameat(file_.get(), temporary.c_str(), file_.get(), name_.c_str()) < 0) {
    written = fail_errno(errno, "renaming");
  }
  if (!written) {
    ::unlinkat(file_.get(), temporary.c_str(), 0);
  }
  return written;
}

}  // namespace vireo
