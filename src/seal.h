// SPDX-License-Identifier: Apache-2.0
// Snapshots that the kernel looks after (fs-verity, Documentation/filesystems/fsverity.rst): nobody
// can write to one any more, and each page of it is compared with its hash when it is read.
#pragma once

#include <string>

#include "src/base/error.h"

namespace vireo {

/// Seals the file for good, which nobody may have open for writing. Errors: kSystem, with what the
/// file system wants.
Result<> seal_file(const std::string& path);

/// Whether a file beside `path` could be sealed, tried with one that is gone again. Errors:
/// kSystem.
Result<> check_sealable(const std::string& path);

bool is_sealed(int file);

}  // namespace vireo
