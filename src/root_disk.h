// SPDX-License-Identifier: Apache-2.0
// The root file system on a disk: what the kernel's command line says of it.
#pragma once

#include <cstddef>
#include <string>

#include "src/config.h"

namespace vireo {

/// The name that Linux gives a virtio-blk device by its place among all of them: vda, … vdz, vdaa.
/// In this order: disks, volumes, the cloud-init seed.
std::string virtio_disk_name(std::size_t place);

/// "root=/dev/vda rw" of the disk that is root; empty where none is.
std::string root_arguments(const Config& config);

}  // namespace vireo
