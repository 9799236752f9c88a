// SPDX-License-Identifier: Apache-2.0
// Where a sandboxed process still touches the file system.
#pragma once

#include <vector>

namespace vireo {

/// The directories (and files) with which the process still does something, by descriptor.
struct SandboxPaths {
  std::vector<int> removal;  ///< names of its own are removed here at the end
  std::vector<int> writing;  ///< files are made and replaced here
  std::vector<int> opening;  ///< files in these that are there are opened; or files themselves

  /// Adds a descriptor, where there is one (-1: none).
  static void add(std::vector<int>& list, int directory) {
    if (directory >= 0) {
      list.push_back(directory);
    }
  }
};

}  // namespace vireo
