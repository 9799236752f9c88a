// SPDX-License-Identifier: Apache-2.0
// sandbox.allow_paths: what verbs of the control socket may name by its path, while no other path
// of the host is within reach.
//
// Each is looked up once, before the sandbox is entered, and kept open. What is named later is
// looked up from there, and nothing on the way leads out again: no "..", no link, no mount. The
// sandbox holds a process that a guest has taken over to the same (src/landlock.h).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

class AllowedPaths {
 public:
  AllowedPaths() = default;

  /// Directories, image files and block devices, absolute. Errors begin with the path.
  static Result<AllowedPaths> open(const std::vector<std::string>& paths);

  /// Whether `path` is one of them, or begins with one that is a directory.
  bool cover(std::string_view path) const;
  /// open(2) with O_CLOEXEC of what is there and covered. The error begins with the path.
  Result<UniqueFd> open_file(const std::string& path, int flags) const;

  /// The directories and the files, for the sandbox: each by a descriptor.
  std::vector<int> descriptors() const;

 private:
  struct Entry {
    std::string path;
    UniqueFd itself;
    UniqueFd directory;  // of a file: the one that it is in, …
    std::string name;    // … and its name there
  };

  static Result<Entry> open_entry(const std::string& path);
  const Entry* find(std::string_view path) const;

  std::vector<Entry> entries_;
};

}  // namespace vireo
