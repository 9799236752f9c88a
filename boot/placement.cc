// SPDX-License-Identifier: Apache-2.0
#include "boot/placement.h"

#include <algorithm>
#include <cerrno>

#include <sys/random.h>

#include <fmt/core.h>

namespace vireo {

namespace {

constexpr std::uint64_t kPageSize = 4096;
/// KERNEL_IMAGE_SIZE of a kernel that can be randomised: the mapping that holds its image.
constexpr std::uint64_t kVirtualWindow = std::uint64_t{1} << 30;

std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

std::uint64_t mebibytes(std::uint64_t size) {
  return align_up(size, std::uint64_t{1} << 20) >> 20;
}

/// A random multiple of `alignment` for something of `size` bytes within [from, to).
std::uint64_t random_slot(std::uint64_t from, std::uint64_t to, std::uint64_t size,
                          std::uint64_t alignment, const RandomBelow& random_below) {
  const std::uint64_t first = align_up(from, alignment);
  return first + random_below((to - size - first) / alignment + 1) * alignment;
}

}  // namespace

std::uint64_t system_random_below(std::uint64_t bound) {
  CHECK(bound != 0);
  std::uint64_t value = 0;
  ssize_t count = 0;
  do {
    count = ::getrandom(&value, sizeof(value), 0);
  } while (count < 0 && errno == EINTR);
  CHECK(count == sizeof(value));
  return value % bound;
}

Result<Placement> place_kernel(const KernelImage& kernel, const PlacementRequest& request,
                               const RandomBelow& random_below) {
  if (kernel.end > request.ram_end) {
    return fail(ErrorCode::kBadInput,
                fmt::format("the kernel needs memory up to {} MiB, and there are {} MiB",
                            mebibytes(kernel.end), request.ram_end >> 20));
  }
  const std::uint64_t size = kernel.end - kernel.start;
  Placement placement;
  std::uint64_t kernel_limit = request.ram_end;
  if (request.initramfs_size > 0) {
    const std::uint64_t top =
        std::min(request.ram_end, kernel.initramfs_max + 1) & ~(kPageSize - 1);
    if (request.initramfs_size > top ||
        ((top - request.initramfs_size) & ~(kPageSize - 1)) < kernel.end) {
      return fail(ErrorCode::kBadInput,
                  fmt::format("the initramfs of {} MiB does not fit above the kernel, which ends "
                              "at {} MiB, and below {} MiB",
                              mebibytes(request.initramfs_size), mebibytes(kernel.end), top >> 20));
    }
    placement.initramfs = GuestAddress((top - request.initramfs_size) & ~(kPageSize - 1));
    kernel_limit = placement.initramfs.value();
  }
  // The kernel maps itself in pages of 2 MiB, so it claims whole ones.
  const std::uint64_t claimed = align_up(size, kernel.alignment);
  if (request.random_physical && kernel.start + claimed <= kernel_limit) {
    placement.physical_delta =
        random_slot(kernel.start, kernel_limit, claimed, kernel.alignment, random_below) -
        kernel.start;
  }
  if (request.random_virtual && kernel.start + claimed <= kVirtualWindow) {
    // As linked, the virtual base lies kernel.start above the start of the window.
    placement.virtual_delta =
        random_slot(kernel.start, kVirtualWindow, claimed, kernel.alignment, random_below) -
        kernel.start;
  }
  return placement;
}

}  // namespace vireo
