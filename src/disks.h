// SPDX-License-Identifier: Apache-2.0
// The disks of a machine: what the configuration names, opened and locked.
#pragma once

#include <memory>
#include <vector>

#include "devices/block/block_device.h"
#include "src/base/error.h"
#include "src/config.h"

namespace vireo {

struct OpenDisk {
  BlockDevice::Settings settings;
  std::unique_ptr<Disk> disk;
};

/// In the order in which the guest has them: disks, volumes, the cloud-init seed. Main thread,
/// before the sandbox. Errors begin with what the disk is called.
Result<std::vector<OpenDisk>> open_disks(const Config& config);

}  // namespace vireo
