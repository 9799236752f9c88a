// SPDX-License-Identifier: Apache-2.0
// The one door to the kernel's virtio headers, which C++ takes only with a few workarounds.
#pragma once

#include <cstdint>

// The layout of legacy rings is a function with void* arithmetic in that header.
#define VIRTIO_RING_NO_LEGACY
// So are the registers of the legacy interface over PCI, for which there is no driver here.
#define VIRTIO_PCI_NO_LEGACY
// IWYU pragma: begin_exports
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
// IWYU pragma: end_exports

namespace vireo {

/// A feature's bit among the 64, by its number (VIRTIO_F_…).
constexpr std::uint64_t feature_bit(unsigned number) {
  return std::uint64_t{1} << number;
}

}  // namespace vireo
