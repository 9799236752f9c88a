// SPDX-License-Identifier: Apache-2.0
// Where kernel and initramfs lie in guest memory, and how far the kernel's virtual base moves.
//
//   1 MiB …   | kernel (as linked, or at random)  …  | initramfs, as high as it may | hole at 3 GiB
//
// Arithmetic only; randomness is an argument, so that tests know what comes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "boot/kernel_image.h"
#include "src/base/address.h"
#include "src/base/error.h"

namespace vireo {

struct PlacementRequest {
  /// The RAM that begins at guest-physical 0: kernel and initramfs lie in it, below the hole.
  std::uint64_t ram_end = 0;
  std::uint64_t initramfs_size = 0;  ///< 0: there is none
  bool random_physical = false;
  bool random_virtual = false;
};

struct Placement {
  /// Added to every guest-physical address of the image; may count as negative.
  std::uint64_t physical_delta = 0;
  /// Added to the kernel's virtual base.
  std::uint64_t virtual_delta = 0;
  GuestAddress initramfs;
};

/// A number below `bound` (which is not 0).
using RandomBelow = std::function<std::uint64_t(std::uint64_t bound)>;

/// From getrandom(2); the bias of a 64-bit remainder is far below what could be measured.
std::uint64_t system_random_below(std::uint64_t bound);

/// Errors: kBadInput where kernel or initramfs do not fit into the memory.
Result<Placement> place_kernel(const KernelImage& kernel, const PlacementRequest& request,
                               const RandomBelow& random_below);

}  // namespace vireo
