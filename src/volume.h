// SPDX-License-Identifier: Apache-2.0
// A volume's file: made on first use, and never again. Main thread, before any other thread and the
// sandbox.
#pragma once

#include <span>
#include <string>

#include "src/base/error.h"
#include "src/disk_config.h"
#include "src/helper_program.h"

namespace vireo {

/// Makes the file where it is missing or empty: sparse, with an ext4 file system that mke2fs (in
/// one of `directories`) makes. It gets its name when it is whole, and on stable storage; of two
/// processes at once, both use what the first one made. A file that holds anything is left as it
/// is, and refused where it has another size. Errors begin with the volume.
Result<> make_volume(const VolumeConfig& volume,
                     std::span<const std::string> directories = program_directories());

}  // namespace vireo
