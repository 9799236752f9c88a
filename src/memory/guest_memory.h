// SPDX-License-Identifier: Apache-2.0
// Guest RAM: the regions that back guest-physical addresses, and the only ways to reach them.
//
// Owned by Machine, which registers every region as a KVM memory slot before the irqchip exists
// and destroys it last. Read by every thread; the set of regions never changes after create().
//
// Guest bytes are copied in or out, or handed to the kernel as a span; a span is never parsed in
// place, because the guest may change it between two reads. An access outside RAM is the guest's
// mistake, so it is an empty optional or false, never an Error.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "src/base/address.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/memory/page_set.h"

namespace vireo {

enum class HugePages : std::uint8_t { kOff, kTransparent, k2M, k1G };

struct GuestMemoryConfig {
  HugePages huge_pages = HugePages::kOff;
  bool shared = false;     ///< memfd, MAP_SHARED: needed by what maps RAM in another process
  bool mergeable = false;  ///< KSM may merge pages
  bool prefault = false;   ///< touch every page before the guest runs
};

class GuestMemory {
 public:
  struct Region {
    GuestRange range;
    std::span<std::byte> host;  ///< as long as the range
  };

  /// Maps `ranges` (ascending, not overlapping, page-aligned). Host and guest addresses of a region
  /// are congruent modulo 2 MiB (1 GiB with 1G pages), so that huge pages stay huge in the guest's
  /// second-level page table. Errors: kSystem where memory or huge pages run out.
  static Result<std::unique_ptr<GuestMemory>> create(std::span<const GuestRange> ranges,
                                                     const GuestMemoryConfig& config);

  /// A region over a buffer of the caller's, for tests and fuzz targets.
  static std::unique_ptr<GuestMemory> adopt(GuestAddress start, std::span<std::byte> host);

  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;
  ~GuestMemory() = default;

  std::span<const Region> regions() const { return regions_; }
  /// Sum of all regions, in bytes.
  std::uint64_t size() const;
  /// First address behind the highest region.
  GuestAddress end() const;

  /// `size` bytes at `address`, if they lie within one region.
  std::optional<std::span<std::byte>> slice(GuestAddress address, std::uint64_t size) const;

  /// Copy in and out; false where any byte lies outside one region, and then nothing was copied.
  [[nodiscard]] bool write(GuestAddress address, std::span<const std::byte> bytes);
  [[nodiscard]] bool read(GuestAddress address, std::span<std::byte> bytes) const;

  template <typename T>
  [[nodiscard]] bool write_object(GuestAddress address, const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return write(address, std::as_bytes(std::span(&value, 1)));
  }
  template <typename T>
  std::optional<T> read_object(GuestAddress address) const {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    if (!read(address, std::as_writable_bytes(std::span(&value, 1)))) {
      return std::nullopt;
    }
    return value;
  }

  /// A word that both sides use at once, such as an index of a ring: for std::atomic_ref alone.
  /// nullptr where it is outside RAM or at an odd address.
  std::uint16_t* shared_word(GuestAddress address) const;

  /// Has `bytes`, whole pages of a region, read as those of `fd` from `offset` on, which is a
  /// multiple of the page size: the file's pages are read when they are touched, and what is
  /// written stays here. Before it is a memory slot. Errors: kSystem.
  Result<> map_file(std::span<std::byte> bytes, int fd, std::uint64_t offset);

  /// Makes all of it present: pages of a file as they are there, which are still shared with who
  /// else has it mapped; the rest as ours. Errors: kSystem.
  Result<> prefault() const;
  /// The bytes of `count` pages from the `first` on, counted through the regions.
  std::vector<std::span<std::byte>> pages(std::uint64_t first, std::uint64_t count) const;
  /// touch() of all that is mapped from files. Any thread while the guest runs.
  void touch_outside_parts() const;
  /// Adds to `pages` those that are mapped: the guest or this process has touched them, or their
  /// neighbours. Errors: kSystem where `pagemap` does not tell.
  Result<> add_touched(int pagemap, PageSet& pages) const;

  /// Somebody brings the pages of `bytes` when they are touched: until then they hold something,
  /// though they are not there.
  void expect_pages(std::span<std::byte> bytes) { outside_parts_.push_back(bytes); }

  /// From here on mark_written() marks; what was marked before is forgotten. Main thread.
  void start_marking();
  void stop_marking() { marking_.store(false, std::memory_order_release); }
  /// To be told when bytes were written by anybody but the guest and KVM, which has a log of these:
  /// by us, or by the kernel for us. After the write, and before anybody takes it for finished. Any
  /// thread.
  void mark_written(GuestAddress address, std::uint64_t size) const {
    if (marking_.load(std::memory_order_acquire)) {
      mark(address, size);
    }
  }
  /// Adds the pages that were marked to `pages`, and unmarks them. Any thread, one at a time.
  void take_marks(PageSet& pages);

  /// Makes all of it read as zeros again, and gives its pages back where they are not reserved
  /// ones (huge pages, prefaulted). While nothing uses it, and nobody brings pages.
  Result<> clear();

  /// Pages of 4 KiB that are present, counted by mincore(2): what the guest or its loader has
  /// touched, in the host's page size. Walks all of memory. Any thread.
  std::uint64_t resident_pages() const;

  /// Adds to `pages` those that may hold something else than zeros, by /proc/self/pagemap: all,
  /// where `pagemap` is -1. Any thread.
  void add_populated(int pagemap, PageSet& pages) const;

  /// Adds to `pages` those that were written since the memory was mapped from a file, and maybe
  /// some that were only read: by /proc/self/pagemap. Errors: kSystem where that cannot tell.
  Result<> add_private(int pagemap, PageSet& pages) const;

  /// Makes the pages of the range present (MADV_POPULATE_WRITE), which is many times cheaper than
  /// a fault for each. A hint: where the kernel cannot, the pages come at their first touch.
  void populate(GuestAddress address, std::uint64_t size) const;

 private:
  GuestMemory() = default;

  void mark(GuestAddress address, std::uint64_t size) const;

  std::vector<Mapping> mappings_;
  std::vector<Region> regions_;
  std::atomic<bool> marking_ = false;
  // As PageSet has its words; made at the first start_marking(), and kept.
  std::unique_ptr<std::atomic<std::uint64_t>[]> marks_;
  GuestMemoryConfig config_;
  std::vector<std::span<std::byte>> outside_parts_;  // hold something where nothing is present
};

}  // namespace vireo
