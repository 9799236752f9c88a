// SPDX-License-Identifier: Apache-2.0
#include "src/memory/memory_image.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <limits>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/checksum.h"
#include "src/base/fd.h"

namespace vireo {

namespace {

constexpr std::uint64_t kPiecePages = 4096;
/// One write(2).
constexpr std::uint64_t kWritePages = 256;
/// So many zero pages or more between data take no place: 2 MiB, which a huge page can cover.
constexpr std::uint64_t kSqueezedPages = 512;
constexpr std::uint64_t kBlockPages = kHugePage / kImagePage;
/// So many mappings at most: the kernel's limit for a process is 65530.
constexpr std::size_t kMappingsMax = 8192;

template <typename T>
std::span<T> items_of(const Mapping& mapping, std::uint64_t count) {
  return {static_cast<T*>(static_cast<void*>(mapping.data())), count};
}

Result<Mapping> zeroed(std::uint64_t bytes) {
  return Mapping::create(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                         -1, 0, "memory for a snapshot's tables");
}

bool is_zero(const std::byte* page) {
  std::uint64_t any = 0;
  for (std::size_t offset = 0; offset < kImagePage; offset += 256) {
    // As many words as a compiler makes vectors of, and then a look.
    for (std::size_t i = 0; i < 256; i += sizeof(any)) {
      std::uint64_t word = 0;
      __builtin_memcpy(&word, page + offset + i, sizeof(word));
      any |= word;
    }
    if (any != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace

// Writing
// ----------------------------------------------------------------------------------------

Result<MemoryImageWriter> MemoryImageWriter::create(const GuestMemory& memory, int fd,
                                                    std::uint64_t offset, PageKind untaken) {
  CHECK(untaken != PageKind::kData);
  MemoryImageWriter image(fd, offset, untaken);
  const std::uint64_t pages = memory.size() / kImagePage;
  if (pages >= std::numeric_limits<std::uint32_t>::max()) {
    return fail(ErrorCode::kConfig, "machine.memory: too large for a snapshot");
  }
  std::uint64_t first = 0;
  for (const GuestMemory::Region& region : memory.regions()) {
    const std::uint64_t count = region.host.size() / kImagePage;
    for (std::uint64_t begin = 0; begin < count; begin += kPiecePages) {
      image.pieces_.push_back({.first = first + begin,
                               .count = std::min(kPiecePages, count - begin),
                               .host = region.host.data() + begin * kImagePage});
    }
    first += count;
  }
  TRY_ASSIGN(image.kinds_memory_, zeroed(pages * sizeof(std::uint8_t)));
  TRY_ASSIGN(image.positions_memory_, zeroed(pages * sizeof(std::uint32_t)));
  TRY_ASSIGN(image.checksums_memory_, zeroed(pages * sizeof(std::uint64_t)));
  image.kinds_ = items_of<std::uint8_t>(image.kinds_memory_, pages);
  image.positions_ = items_of<std::uint32_t>(image.positions_memory_, pages);
  image.checksums_ = items_of<std::uint64_t>(image.checksums_memory_, pages);
  return image;
}

void MemoryImageWriter::examine(std::size_t piece) {
  const Piece& part = pieces_[piece];
  pages_->for_each(part.first, part.count, [&](std::uint64_t page) {
    // What has been written as data goes on as data, or the file would keep what it was.
    const bool zero = kinds_[page] != std::to_underlying(PageKind::kData) &&
                      is_zero(part.host + (page - part.first) * kImagePage);
    kinds_[page] = std::to_underlying(zero ? PageKind::kZero : PageKind::kData);
  });
}

void MemoryImageWriter::give_place(std::uint64_t page) {
  positions_[page] = static_cast<std::uint32_t>(++places_);
}

void MemoryImageWriter::place_pages() {
  for (const Piece& part : pieces_) {
    // The page after the last that got a place, where there is one in this piece.
    std::uint64_t behind = std::numeric_limits<std::uint64_t>::max();
    pages_->for_each(part.first, part.count, [&](std::uint64_t page) {
      if (kinds_[page] != std::to_underlying(PageKind::kData) || has_place(page)) {
        return;
      }
      // Few pages between two of data keep their places, for one mapping of them all.
      if (behind <= page && page - behind < kSqueezedPages &&
          std::ranges::all_of(
              positions_.subspan(behind, page - behind),
              [](std::uint32_t position) { return position == 0; })) {
        while (behind < page) {
          give_place(behind++);
        }
      }
      give_place(page);
      behind = page + 1;
    });
  }
}

Result<> MemoryImageWriter::write(std::size_t piece) {
  const Piece& part = pieces_[piece];
  Result<> result;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  pages_->for_each(part.first, part.count, [&](std::uint64_t page) {
    if (!result || kinds_[page] != std::to_underlying(PageKind::kData)) {
      return;
    }
    if (count > 0 && (page != first + count || place_of(page) != place_of(first) + count ||
                      count == kWritePages)) {
      result = write_run(part, first, count);
      count = 0;
    }
    first = count == 0 ? page : first;
    ++count;
  });
  if (result && count > 0) {
    result = write_run(part, first, count);
  }
  return result;
}

Result<> MemoryImageWriter::write_run(const Piece& piece, std::uint64_t first,
                                      std::uint64_t count) {
  std::span bytes(piece.host + (first - piece.first) * kImagePage, count * kImagePage);
  const std::uint64_t place = place_of(first);
  // A guest that changes a page meanwhile has it taken again, with its checksum.
  for (std::uint64_t i = 0; i < count; ++i) {
    checksums_[place + i] = checksum(bytes.subspan(i * kImagePage, kImagePage));
  }
  std::uint64_t offset = offset_ + place * kImagePage;
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return fail_errno(written < 0 ? errno : EIO, "writing guest memory");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

std::vector<PageRun> MemoryImageWriter::page_table() const {
  std::vector<PageRun> runs;
  for (std::uint64_t page = 0; page < kinds_.size(); ++page) {
    const auto taken = static_cast<PageKind>(kinds_[page]);
    const PageKind kind = kinds_[page] == 0 ? untaken_ : taken;
    add_run(runs,
            {.kind = kind, .count = 1, .position = kind == PageKind::kData ? place_of(page) : 0});
  }
  return runs;
}

// Restoring
// --------------------------------------------------------------------------------------

namespace {

/// Pages that one mapping or one read can bring: data, and zeros between it that have places.
struct Area {
  std::uint64_t page = 0;
  std::uint64_t count = 0;
  std::uint64_t place = 0;
};

/// The places that pages of data have.
class TakenPlaces {
 public:
  explicit TakenPlaces(std::span<const PageRun> runs) {
    std::vector<Piece> pieces;
    for (const PageRun& run : runs) {
      if (run.kind == PageKind::kData) {
        pieces.push_back({.first = run.position, .end = run.position + run.count});
      }
    }
    // As they are where one round took all.
    if (!std::ranges::is_sorted(pieces, {}, &Piece::first)) {
      std::ranges::sort(pieces, {}, &Piece::first);
    }
    for (const Piece& piece : pieces) {
      if (!pieces_.empty() && piece.first <= pieces_.back().end) {
        pieces_.back().end = std::max(pieces_.back().end, piece.end);
      } else {
        pieces_.push_back(piece);
      }
    }
  }

  bool none_in(std::uint64_t first, std::uint64_t end) const {
    const auto behind = std::ranges::lower_bound(pieces_, end, {}, &Piece::first);
    return behind == pieces_.begin() || std::prev(behind)->end <= first;
  }

 private:
  struct Piece {
    std::uint64_t first = 0;
    std::uint64_t end = 0;
  };

  std::vector<Piece> pieces_;  // ascending, with room between them
};

std::vector<Area> areas_of(std::span<const PageRun> runs) {
  const TakenPlaces taken(runs);
  std::vector<Area> areas;
  std::uint64_t page = 0;
  bool zeros_only = false;  // between the last area and here
  for (const PageRun& run : runs) {
    if (run.kind == PageKind::kData) {
      Area* const last = areas.empty() ? nullptr : &areas.back();
      // Places between may be those of other pages, which a later round has not put beside them.
      if (last != nullptr && zeros_only && run.position >= last->place &&
          run.position - last->place == page - last->page &&
          page - last->page - last->count < kSqueezedPages &&
          taken.none_in(last->place + last->count, run.position)) {
        last->count = page - last->page + run.count;
      } else {
        areas.push_back({.page = page, .count = run.count, .place = run.position});
      }
      zeros_only = true;
    } else if (run.kind == PageKind::kAbsent) {
      zeros_only = false;
    }
    page += run.count;
  }
  return areas;
}

/// How many pages an area has at least that is mapped: more would be too many mappings.
std::uint64_t least_mapped(std::span<const Area> areas) {
  if (areas.size() <= kMappingsMax) {
    return 1;
  }
  std::vector<std::uint64_t> counts;
  counts.reserve(areas.size());
  for (const Area& area : areas) {
    counts.push_back(area.count);
  }
  const auto nth = counts.begin() + static_cast<std::ptrdiff_t>(kMappingsMax);
  std::ranges::nth_element(counts, nth, std::ranges::greater());
  return *nth + 1;
}

/// Calls `visit(bytes, place)` for the pages of an area, which may lie in several regions.
template <typename Visit>
Result<> for_each_part(GuestMemory& memory, const Area& area, Visit visit) {
  std::uint64_t first = 0;  // of the region
  for (const GuestMemory::Region& region : memory.regions()) {
    const std::uint64_t count = region.host.size() / kImagePage;
    const std::uint64_t begin = std::max(first, area.page);
    const std::uint64_t end = std::min(first + count, area.page + area.count);
    if (begin < end) {
      TRY(visit(region.host.subspan((begin - first) * kImagePage, (end - begin) * kImagePage),
                area.place + (begin - area.page)));
    }
    first += count;
  }
  return {};
}

}  // namespace

Result<> map_memory_image(GuestMemory& memory, int fd, std::uint64_t offset,
                          std::span<const PageRun> runs) {
  const std::vector<Area> areas = areas_of(runs);
  const std::uint64_t least = least_mapped(areas);
  for (const Area& area : areas) {
    TRY(for_each_part(memory, area, [&](std::span<std::byte> bytes, std::uint64_t place) {
      const std::uint64_t at = offset + place * kImagePage;
      return area.count < least ? read_full_at(fd, bytes, at) : memory.map_file(bytes, fd, at);
    }));
  }
  return {};
}

std::vector<std::span<std::byte>> dense_blocks(const GuestMemory& memory,
                                               std::span<const LayerPiece> pieces) {
  std::vector<std::span<std::byte>> runs;
  std::uint64_t first = 0;  // page of the region
  auto piece = pieces.begin();
  for (const GuestMemory::Region& region : memory.regions()) {
    const std::uint64_t pages = region.host.size() / kImagePage;
    const std::uint64_t odd =
        reinterpret_cast<std::uint64_t>(region.host.data()) / kImagePage % kBlockPages;
    for (std::uint64_t block = first + (kBlockPages - odd) % kBlockPages;
         block + kBlockPages <= first + pages; block += kBlockPages) {
      std::uint64_t data = 0;
      for (; piece != pieces.end() && piece->page < block + kBlockPages; ++piece) {
        const std::uint64_t begin = std::max(piece->page, block);
        const std::uint64_t end = std::min(piece->page + piece->count, block + kBlockPages);
        data += end > begin ? end - begin : 0;
        if (piece->page + piece->count > block + kBlockPages) {
          break;  // its rest is the next block's
        }
      }
      if (data < kBlockPages / 2) {
        continue;
      }
      const std::span bytes = region.host.subspan((block - first) * kImagePage, kHugePage);
      if (!runs.empty() && runs.back().data() + runs.back().size() == bytes.data()) {
        runs.back() = {runs.back().data(), runs.back().size() + bytes.size()};
      } else {
        runs.push_back(bytes);
      }
    }
    first += pages;
  }
  return runs;
}

Result<> read_memory_image(GuestMemory& memory, const MemoryLayer& layer) {
  const std::vector<LayerPiece> pieces = pieces_of(layer);
  const std::vector<std::span<std::byte>> dense = dense_blocks(memory, pieces);
  for (const std::span<std::byte> run :
       std::span(dense).first(std::min(dense.size(), kMappingsMax))) {
    // A kernel without huge pages, or memory of reserved ones, is as good.
    ::madvise(run.data(), run.size(), MADV_HUGEPAGE);
  }
  return in_parallel(pieces.size(), [&]() -> PieceWork {
    const auto reader = std::make_shared<LayerReader>(layer);
    return [&, reader](std::size_t number) {
      const LayerPiece& piece = pieces[number];
      const Area area = {.page = piece.page, .count = piece.count, .place = piece.place};
      return for_each_part(memory, area, [&](std::span<std::byte> bytes, std::uint64_t place) {
        return reader->read(place, bytes);
      });
    };
  });
}

}  // namespace vireo
