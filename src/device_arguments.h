// SPDX-License-Identifier: Apache-2.0
// Where virtio-mmio devices are, and what the kernel's command line says of the devices: where the
// root file system is, and those, for a guest that looks for no ACPI.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "arch/arch.h"
#include "src/config.h"

namespace vireo {

/// The name that Linux gives a virtio-blk device by its place among all of them: vda, … vdz, vdaa.
/// In this order: disks, volumes, the cloud-init seed.
std::string virtio_disk_name(std::size_t place);

/// "root=/dev/vda rw" of the disk that is root; empty where none is.
std::string root_arguments(const Config& config);

/// The window and the interrupt line of each device; none over PCI. A machine that was saved has
/// its own.
std::vector<arch::MmioDevice> mmio_places(const Config& config);

/// "virtio_mmio.device=4K@0xc0001000:5 …", one for each; empty where they are found otherwise.
std::string mmio_arguments(const Config& config, std::span<const arch::MmioDevice> places);

}  // namespace vireo
