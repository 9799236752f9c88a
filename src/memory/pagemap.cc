// SPDX-License-Identifier: Apache-2.0
#include "src/memory/pagemap.h"

#include <algorithm>
#include <array>

#include <sys/ioctl.h>

#include "src/base/fd.h"
#include "src/base/pagemap_scan.h"

namespace vireo {

namespace {

constexpr std::uint64_t kPage = 4096;

// Of an entry of the file.
constexpr std::uint64_t kPresent = std::uint64_t{1} << 63;
constexpr std::uint64_t kSwapped = std::uint64_t{1} << 62;
constexpr std::uint64_t kOfFile = std::uint64_t{1} << 61;

/// False where the kernel has no PAGEMAP_SCAN.
bool scan(int pagemap, std::span<const std::byte> host, PresentPages which, std::uint64_t first,
          PageSet& pages) {
  std::array<PagemapScan::Region, 512> found = {};
  const auto start = reinterpret_cast<std::uint64_t>(host.data());
  PagemapScan scan = {
      .start = start,
      .end = start + host.size(),
      .vec = reinterpret_cast<std::uint64_t>(found.data()),
      .vec_len = found.size(),
      .category_anyof_mask = PagemapScan::kPageIsPresent | PagemapScan::kPageIsSwapped,
      .return_mask = PagemapScan::kPageIsFile};
  if (which == PresentPages::kPrivate) {
    scan.category_mask = PagemapScan::kPageIsFile;
    scan.category_inverted = PagemapScan::kPageIsFile;
  }
  while (scan.start < scan.end) {
    const int count = ::ioctl(pagemap, kPagemapScan, &scan);
    if (count < 0) {
      return false;
    }
    for (const PagemapScan::Region& region :
         std::span(found).first(static_cast<std::size_t>(count))) {
      pages.add_range(first + (region.start - start) / kPage, (region.end - region.start) / kPage);
    }
    scan.start = scan.walk_end;
  }
  return true;
}

bool look_at_each(int pagemap, std::span<const std::byte> host, PresentPages which,
                  std::uint64_t first, PageSet& pages) {
  std::array<std::uint64_t, 4096> entries = {};
  const std::uint64_t count = host.size() / kPage;
  const std::uint64_t place = reinterpret_cast<std::uint64_t>(host.data()) / kPage;
  for (std::uint64_t begin = 0; begin < count; begin += entries.size()) {
    const std::span window = std::span(entries).first(std::min(entries.size(), count - begin));
    if (!read_full_at(pagemap, std::as_writable_bytes(window),
                      (place + begin) * sizeof(std::uint64_t))) {
      return false;
    }
    for (std::size_t i = 0; i < window.size(); ++i) {
      const bool there = (window[i] & (kPresent | kSwapped)) != 0;
      if (there && (which == PresentPages::kAll || (window[i] & kOfFile) == 0)) {
        pages.add(first + begin + i);
      }
    }
  }
  return true;
}

}  // namespace

bool add_present(int pagemap, std::span<const std::byte> host, PresentPages which,
                 std::uint64_t first, PageSet& pages) {
  return pagemap >= 0 && (scan(pagemap, host, which, first, pages) ||
                          look_at_each(pagemap, host, which, first, pages));
}

}  // namespace vireo
