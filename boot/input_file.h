// SPDX-License-Identifier: Apache-2.0
// An input file that the operator named: by path, or as fd:N or fd:NAME (LISTEN_FDNAMES) where it
// was inherited. Only a regular file that is open for reading is accepted.
//
// Owned by GuestBoot. The descriptor is used with pread only, so its position does not matter.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

/// What tells one state of a file from another without reading it.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size_bytes = 0;
  std::uint64_t mtime_ns = 0;
  std::uint64_t ctime_ns = 0;

  bool operator==(const FileIdentity&) const = default;
};

class InputFile {
 public:
  /// `setting` names the key in messages ("boot.kernel"). Errors: kMissingInput where nothing is
  /// there, kPermission, kBadInput where it is not a regular file or not open for reading.
  static Result<InputFile> open(const std::string& path, std::string_view setting);

  int fd() const { return fd_.get(); }
  /// The path as the operator wrote it.
  const std::string& path() const { return path_; }
  std::uint64_t size() const { return identity_.size_bytes; }
  /// As the file was when it was opened.
  const FileIdentity& identity() const { return identity_; }
  /// As the file is now: a difference means that somebody writes to it.
  Result<FileIdentity> current_identity() const;

 private:
  InputFile(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  UniqueFd fd_;
  std::string path_;
  FileIdentity identity_;
};

}  // namespace vireo
