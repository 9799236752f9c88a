// SPDX-License-Identifier: Apache-2.0
// A file that is written once, when the VM has ended: the timeline, the profile. What cannot be
// written then is refused before the VM starts.
//
//   TRY_ASSIGN(ReportFile file, ReportFile::open(config.timeline, "process.timeline"));
//   …
//   TRY(file.write(timeline.to_json()));
//
// Main thread.
#pragma once

#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

class ReportFile {
 public:
  /// `path`: a file, replaced in one step by the report (a temporary file beside it, then rename),
  /// so that nobody reads half of one; or a pipe, a device or an inherited descriptor
  /// (src/base/fd_path.h), which are written to. Errors begin with `key`, the setting's name, and
  /// the path.
  static Result<ReportFile> open(const std::string& path, std::string_view key);

  /// The directory in which the report is made and renamed; -1 where it is written to what is
  /// there.
  int directory() const { return name_.empty() ? -1 : file_.get(); }

  /// The whole report. Leaves the old file when it fails.
  Result<> write(std::string_view text) const;

 private:
  Result<> replace(std::string_view text) const;

  std::string what_;  // the setting and its path
  std::string name_;  // in the directory that file_ is; empty where file_ is what is written to
  UniqueFd file_;
};

}  // namespace vireo
