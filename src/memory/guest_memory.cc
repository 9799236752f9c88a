// SPDX-License-Identifier: Apache-2.0
#include "src/memory/guest_memory.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/log.h"
#include "src/memory/bus_error.h"
#include "src/memory/pagemap.h"

namespace vireo {

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t k2MiB = std::uint64_t{2} << 20;
constexpr std::uint64_t k1GiB = std::uint64_t{1} << 30;

/// What mmap and memfd_create need to know of a size of huge pages.
struct HugeTlb {
  std::uint64_t page_size;
  int mmap_flags;
  unsigned memfd_flags;
  const char* name;
};

/// Nothing where RAM is made of ordinary pages.
std::optional<HugeTlb> hugetlb_of(HugePages huge_pages) {
  switch (huge_pages) {
    case HugePages::k2M:
      return HugeTlb{k2MiB, MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), MFD_HUGETLB | MFD_HUGE_2MB, "2M"};
    case HugePages::k1G:
      return HugeTlb{k1GiB, MAP_HUGETLB | (30 << MAP_HUGE_SHIFT), MFD_HUGETLB | MFD_HUGE_1GB, "1G"};
    case HugePages::kOff:
    case HugePages::kTransparent:
      return std::nullopt;
  }
  std::unreachable();
}

/// Address space for `range`, congruent to it modulo `alignment` (a power of two).
Result<Mapping> reserve(const GuestRange& range, std::uint64_t alignment) {
  TRY_ASSIGN(Mapping mapping, Mapping::create(range.size() + alignment, PROT_NONE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
                                              "reserving address space for guest memory"));
  const auto start = reinterpret_cast<std::uint64_t>(mapping.data());
  mapping.trim((range.start().value() - start) & (alignment - 1), range.size());
  return mapping;
}

Error no_memory(int errnum, const GuestRange& range, const std::optional<HugeTlb>& hugetlb) {
  const std::uint64_t mebibytes = range.size() >> 20;
  if (hugetlb) {
    return Error::from_errno(
        errnum, fmt::format("machine.hugepages = \"{0}\": {1} MiB of huge pages are not to be had "
                            "(see nr_hugepages of that size under /sys/kernel/mm/hugepages)",
                            hugetlb->name, mebibytes));
  }
  return Error::from_errno(errnum, fmt::format("machine.memory: mapping {} MiB", mebibytes));
}

/// Puts RAM of the wanted kind over a reserved range.
Result<> back_with_ram(std::span<std::byte> reserved, const GuestRange& range,
                       const GuestMemoryConfig& config) {
  const std::optional<HugeTlb> hugetlb = hugetlb_of(config.huge_pages);
  int flags = MAP_FIXED;
  UniqueFd memfd;
  if (config.shared) {
    flags |= MAP_SHARED;
    memfd =
        UniqueFd(::memfd_create("vireo-ram", MFD_CLOEXEC | (hugetlb ? hugetlb->memfd_flags : 0U)));
    if (!memfd || ::ftruncate(memfd.get(), static_cast<off_t>(range.size())) < 0) {
      return std::unexpected(no_memory(errno, range, hugetlb));
    }
  } else {
    // Overcommitted on purpose: a guest of 1 TiB costs what it touches. Huge pages are the
    // exception, since touching one that is not there is a bus error.
    flags |= MAP_PRIVATE | MAP_ANONYMOUS | (hugetlb ? hugetlb->mmap_flags : MAP_NORESERVE);
  }
  void* const data = ::mmap(reserved.data(), reserved.size(), PROT_READ | PROT_WRITE, flags,
                            memfd ? memfd.get() : -1, 0);
  if (data == MAP_FAILED) {
    return std::unexpected(no_memory(errno, range, hugetlb));
  }
  return {};
}

Result<> advise(std::span<std::byte> bytes, int advice, const char* setting) {
  if (::madvise(bytes.data(), bytes.size(), advice) < 0) {
    return fail_errno(errno, fmt::format("{}: the kernel refuses madvise", setting));
  }
  return {};
}

/// Tells the kernel of a new mapping what `config` wants of it.
Result<> advise(std::span<std::byte> bytes, const GuestMemoryConfig& config) {
  if (config.huge_pages == HugePages::kTransparent) {
    TRY(advise(bytes, MADV_HUGEPAGE, "machine.hugepages = \"transparent\""));
  }
  if (config.mergeable) {
    TRY(advise(bytes, MADV_MERGEABLE, "machine.mergeable"));
  }
  // Guest memory is large and holds secrets: it never goes into a core dump.
  return advise(bytes, MADV_DONTDUMP, "guest memory");
}

}  // namespace

Result<std::unique_ptr<GuestMemory>> GuestMemory::create(std::span<const GuestRange> ranges,
                                                         const GuestMemoryConfig& config) {
  auto memory = std::unique_ptr<GuestMemory>(new GuestMemory());
  const std::optional<HugeTlb> hugetlb = hugetlb_of(config.huge_pages);
  memory->config_ = config;
  for (const GuestRange& range : ranges) {
    if (hugetlb && range.size() % hugetlb->page_size != 0) {
      return fail(ErrorCode::kConfig,
                  fmt::format("machine.memory: {} MiB is not a multiple of machine.hugepages = "
                              "\"{}\"",
                              range.size() >> 20, hugetlb->name));
    }
    TRY_ASSIGN(Mapping mapping,
               reserve(range, config.huge_pages == HugePages::k1G ? k1GiB : k2MiB));
    TRY(back_with_ram(mapping.bytes(), range, config));
    TRY(advise(mapping.bytes(), config));
    if (config.prefault && ::madvise(mapping.data(), mapping.size(), MADV_POPULATE_WRITE) < 0) {
      return fail_errno(errno, fmt::format("machine.prefault: {} MiB", range.size() >> 20));
    }
    memory->regions_.push_back({range, mapping.bytes()});
    memory->mappings_.push_back(std::move(mapping));
  }
  return memory;
}

std::unique_ptr<GuestMemory> GuestMemory::adopt(GuestAddress start, std::span<std::byte> host) {
  auto memory = std::unique_ptr<GuestMemory>(new GuestMemory());
  const std::optional<GuestRange> range = GuestRange::create(start, host.size());
  CHECK(range.has_value());
  memory->regions_.push_back({*range, host});
  return memory;
}

Result<> GuestMemory::map_file(std::span<std::byte> bytes, int fd, std::uint64_t offset) {
  void* const data =
      ::mmap(bytes.data(), bytes.size(), PROT_READ | PROT_WRITE,
             MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE, fd, static_cast<off_t>(offset));
  if (data == MAP_FAILED) {
    return fail_errno(errno, "mapping guest memory");
  }
  outside_parts_.push_back(bytes);
  return advise(bytes, config_);
}

Result<> GuestMemory::prefault() const {
  const auto populate = [](std::span<std::byte> bytes) -> Result<> {
    if (!bytes.empty() && ::madvise(bytes.data(), bytes.size(), MADV_POPULATE_WRITE) < 0) {
      return fail_errno(errno, fmt::format("machine.prefault: {} MiB", bytes.size() >> 20));
    }
    return {};
  };
  std::vector<std::span<std::byte>> parts = outside_parts_;
  std::ranges::sort(parts, {}, [](std::span<std::byte> part) { return part.data(); });
  for (const Region& region : regions_) {
    std::span<std::byte> left = region.host;
    for (const std::span<std::byte> part : parts) {
      if (part.data() < left.data() || part.data() >= left.data() + left.size()) {
        continue;
      }
      const auto before = static_cast<std::size_t>(part.data() - left.data());
      TRY(populate(left.first(before)));
      touch(part);
      left = left.subspan(before + part.size());
    }
    TRY(populate(left));
  }
  return {};
}

std::vector<std::span<std::byte>> GuestMemory::pages(std::uint64_t first,
                                                     std::uint64_t count) const {
  std::vector<std::span<std::byte>> parts;
  std::uint64_t begin = 0;  // of the region
  for (const Region& region : regions_) {
    const std::uint64_t size = region.host.size() / kPage;
    const std::uint64_t from = std::max(first, begin);
    const std::uint64_t to = std::min(first + count, begin + size);
    if (from < to) {
      parts.push_back(region.host.subspan((from - begin) * kPage, (to - from) * kPage));
    }
    begin += size;
  }
  return parts;
}

void GuestMemory::touch_outside_parts() const {
  std::ranges::for_each(outside_parts_, touch);
}

Result<> GuestMemory::clear() {
  // Pages that were hard to get are kept.
  const bool keeps_pages = hugetlb_of(config_.huge_pages).has_value() || config_.prefault;
  for (const Region& region : regions_) {
    if (!outside_parts_.empty()) {
      TRY(back_with_ram(region.host, region.range, config_));
      TRY(advise(region.host, config_));
    } else if (keeps_pages) {
      std::ranges::fill(region.host, std::byte{0});
    } else if (::madvise(region.host.data(), region.host.size(),
                         config_.shared ? MADV_REMOVE : MADV_DONTNEED) < 0) {
      return fail_errno(errno, "clearing guest memory");
    }
  }
  outside_parts_.clear();
  return {};
}

std::uint64_t GuestMemory::size() const {
  std::uint64_t size = 0;
  for (const Region& region : regions_) {
    size += region.range.size();
  }
  return size;
}

GuestAddress GuestMemory::end() const {
  return regions_.empty() ? GuestAddress(0) : regions_.back().range.end();
}

std::optional<std::span<std::byte>> GuestMemory::slice(GuestAddress address,
                                                       std::uint64_t size) const {
  for (const Region& region : regions_) {
    if (address < region.range.start() || address > region.range.end()) {
      continue;
    }
    const std::uint64_t offset = address.value() - region.range.start().value();
    if (size <= region.range.size() - offset) {
      return region.host.subspan(offset, size);
    }
  }
  return std::nullopt;
}

bool GuestMemory::write(GuestAddress address, std::span<const std::byte> bytes) {
  const auto target = slice(address, bytes.size());
  if (!target) {
    return false;
  }
  std::memcpy(target->data(), bytes.data(), bytes.size());
  mark_written(address, bytes.size());
  return true;
}

bool GuestMemory::read(GuestAddress address, std::span<std::byte> bytes) const {
  const auto source = slice(address, bytes.size());
  if (!source) {
    return false;
  }
  std::memcpy(bytes.data(), source->data(), bytes.size());
  // The compiler may not read guest memory a second time in place of the copy.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return true;
}

std::uint16_t* GuestMemory::shared_word(GuestAddress address) const {
  const auto bytes = slice(address, sizeof(std::uint16_t));
  // Regions are page-aligned on both sides, so the guest's alignment is the host's.
  return bytes && address.value() % sizeof(std::uint16_t) == 0
             ? static_cast<std::uint16_t*>(static_cast<void*>(bytes->data()))
             : nullptr;
}

std::uint64_t GuestMemory::resident_pages() const {
  constexpr std::size_t kWindow = std::size_t{64} << 20;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> present(kWindow / page);
  std::uint64_t count = 0;
  for (const Region& region : regions_) {
    for (std::size_t offset = 0; offset < region.host.size(); offset += kWindow) {
      const std::span window =
          region.host.subspan(offset, std::min(kWindow, region.host.size() - offset));
      if (::mincore(window.data(), window.size(), present.data()) == 0) {
        const std::size_t pages = (window.size() + page - 1) / page;
        count += static_cast<std::uint64_t>(std::ranges::count_if(
            std::span(present).first(pages), [](unsigned char flags) { return (flags & 1) != 0; }));
      }
    }
  }
  return count;
}

void GuestMemory::start_marking() {
  const std::size_t words = PageSet(size() / kPage).words().size();
  if (!marks_) {
    marks_ = std::make_unique<std::atomic<std::uint64_t>[]>(words);
  }
  for (std::size_t i = 0; i < words; ++i) {
    marks_[i].store(0, std::memory_order_relaxed);
  }
  marking_.store(true, std::memory_order_release);
}

void GuestMemory::mark(GuestAddress address, std::uint64_t size) const {
  std::uint64_t first = 0;  // page of the region
  for (const Region& region : regions_) {
    if (size > 0 && address >= region.range.start() && address < region.range.end()) {
      const std::uint64_t offset = address.value() - region.range.start().value();
      for (std::uint64_t page = first + offset / kPage; page <= first + (offset + size - 1) / kPage;
           ++page) {
        marks_[page / PageSet::kBits].fetch_or(std::uint64_t{1} << (page % PageSet::kBits),
                                               std::memory_order_release);
      }
    }
    first += region.host.size() / kPage;
  }
}

void GuestMemory::take_marks(PageSet& pages) {
  for (std::size_t i = 0; i < pages.words().size(); ++i) {
    pages.words()[i] |= marks_[i].exchange(0, std::memory_order_acquire);
  }
}

void GuestMemory::add_populated(int pagemap, PageSet& pages) const {
  std::uint64_t first = 0;  // of the region
  for (const Region& region : regions_) {
    // What is shared may be there without being mapped here.
    if (config_.shared || !add_present(pagemap, region.host, PresentPages::kAll, first, pages)) {
      pages.add_range(first, region.host.size() / kPage);
    }
    for (const std::span<std::byte>& part : outside_parts_) {
      if (part.data() >= region.host.data() &&
          part.data() < region.host.data() + region.host.size()) {
        const auto offset = static_cast<std::uint64_t>(part.data() - region.host.data());
        pages.add_range(first + offset / kPage, part.size() / kPage);
      }
    }
    first += region.host.size() / kPage;
  }
}

Result<> GuestMemory::add_touched(int pagemap, PageSet& pages) const {
  std::uint64_t first = 0;  // of the region
  for (const Region& region : regions_) {
    if (!add_present(pagemap, region.host, PresentPages::kAll, first, pages)) {
      return fail(ErrorCode::kSystem, "/proc/self/pagemap does not tell which pages are there");
    }
    first += region.host.size() / kPage;
  }
  return {};
}

Result<> GuestMemory::add_private(int pagemap, PageSet& pages) const {
  std::uint64_t first = 0;  // of the region
  for (const Region& region : regions_) {
    if (!add_present(pagemap, region.host, PresentPages::kPrivate, first, pages)) {
      return fail(ErrorCode::kSystem, "/proc/self/pagemap does not tell which pages have changed");
    }
    first += region.host.size() / kPage;
  }
  return {};
}

void GuestMemory::populate(GuestAddress address, std::uint64_t size) const {
  const auto target = slice(address, size);
  if (!target || target->empty()) {
    return;
  }
  // madvise wants whole pages; the slots are page-aligned, so rounding stays inside the region.
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<std::uint64_t>(target->data());
  const std::uint64_t first = start & ~(page - 1);
  const std::uint64_t last = (start + target->size() + page - 1) & ~(page - 1);
  if (::madvise(target->data() - (start - first), last - first, MADV_POPULATE_WRITE) < 0) {
    // Older kernels, or a lack that the first touch will report.
    log_debug("memory", "populating {} KiB: errno {}", (last - first) >> 10, errno);
  }
}

}  // namespace vireo
