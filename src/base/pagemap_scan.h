// SPDX-License-Identifier: Apache-2.0
// The ioctl PAGEMAP_SCAN of /proc/self/pagemap, which linux/fs.h has from Linux 6.7 on
// (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include <cstdint>

#include <sys/ioctl.h>

namespace vireo {

/// struct pm_scan_arg.
struct PagemapScan {
  // Categories.
  static constexpr std::uint64_t kPageIsFile = std::uint64_t{1} << 2;
  static constexpr std::uint64_t kPageIsPresent = std::uint64_t{1} << 3;
  static constexpr std::uint64_t kPageIsSwapped = std::uint64_t{1} << 4;
  /// struct page_region: what is found, in addresses.
  struct Region {
    std::uint64_t start = 0;
    std::uint64_t end = 0;
    std::uint64_t categories = 0;
  };

  std::uint64_t size = sizeof(PagemapScan);
  std::uint64_t flags = 0;
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t walk_end = 0;  ///< how far it has come
  std::uint64_t vec = 0;       ///< the address of Regions
  std::uint64_t vec_len = 0;
  std::uint64_t max_pages = 0;
  std::uint64_t category_inverted = 0;
  std::uint64_t category_mask = 0;
  std::uint64_t category_anyof_mask = 0;
  std::uint64_t return_mask = 0;
};
inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScan);

}  // namespace vireo
