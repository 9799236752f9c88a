// SPDX-License-Identifier: Apache-2.0
// Fuzz target: a snapshot file of any content, from its header to guest memory, mapped and read.
// The first byte of the input says what is made of the others, so that the fuzzer gets behind
// checksums and lengths:
//
//   bit 0   all checksums are made right
//   bit 1   the header is there without its reserved bytes; what follows begins behind them
//   bit 2   the file has the length that its header says, and numbered pages where it was shorter
//
// Where memory is in a file of its own, that one has numbered pages.
#include "src/snapshot/snapshot_file.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include "src/base/checksum.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/memory/guest_memory.h"
#include "src/memory/memory_image.h"
#include "src/memory/memory_layer.h"
#include "src/memory/page_table.h"
#include "tests/fuzz/fuzz_input.h"

namespace vireo {
namespace {

using vsnap::Extent;
using vsnap::Header;
using vsnap::SectionEntry;

constexpr std::size_t kHeaderFields = offsetof(Header, reserved);
/// Longer files and larger guests cost too much time for each input.
constexpr std::uint64_t kSizeMax = std::uint64_t{1} << 20;
constexpr std::uint64_t kPagesMax = 4096;
constexpr std::uint64_t kFramePagesMax = 64;
/// FORMAT.md, frame table.
constexpr std::size_t kFrameHead = 16;
constexpr std::size_t kFrameEntry = 24;

// What the first byte asks for
// ----------------------------------------------------------------------------------------

template <typename T>
T get(std::span<const std::byte> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

template <typename T>
void put(std::span<std::byte> bytes, const T& value) {
  std::memcpy(bytes.data(), &value, sizeof(value));
}

/// Those of [offset, offset + size) if the file has them.
std::span<std::byte> part(std::span<std::byte> file, std::uint64_t offset, std::uint64_t size) {
  return offset <= file.size() && size <= file.size() - offset ? file.subspan(offset, size)
                                                               : std::span<std::byte>();
}

std::span<std::byte> part(std::span<std::byte> file, const Extent& extent) {
  return part(file, extent.offset, extent.size);
}

void mend_sections(std::span<std::byte> file, const Extent& table) {
  const std::span<std::byte> entries = part(file, table);
  for (std::size_t at = 0; at + sizeof(SectionEntry) <= entries.size();
       at += sizeof(SectionEntry)) {
    auto entry = get<SectionEntry>(entries.subspan(at));
    entry.extent.checksum = checksum(part(file, entry.extent));
    put(entries.subspan(at), entry);
  }
}

/// Each page begins with its number from `first` on.
void number_pages(std::span<std::byte> pages, std::uint64_t first) {
  for (std::size_t at = 0; at < pages.size(); at += kImagePage) {
    put(pages.subspan(at), le64(first + at / kImagePage));
  }
}

/// The file beside the snapshot. As that has it in all its places, each can be a page of the guest.
std::vector<std::byte> memory_file_of(std::uint64_t size) {
  std::vector<std::byte> memory(size);
  number_pages(memory, 1);
  return memory;
}

void mend_page_checksums(std::span<std::byte> file, const Header& header) {
  const std::span<std::byte> checksums = part(file, header.page_checksums);
  const std::uint64_t places = std::min<std::uint64_t>(checksums.size() / 8, kSizeMax / kImagePage);
  std::vector<std::byte> beside;
  if ((header.flags & vsnap::kFlagMemoryFile) != 0) {
    beside = memory_file_of(places * kImagePage);
  }
  for (std::uint64_t place = 0; place < places; ++place) {
    const std::span<std::byte> page =
        beside.empty() ? part(file, header.memory_offset + place * kImagePage, kImagePage)
                       : part(beside, place * kImagePage, kImagePage);
    put(checksums.subspan(place * 8), le64(checksum(page)));
  }
}

/// The checksums of the frames that there are, and of the pages in them.
void mend_frames(std::span<std::byte> file, const Header& header) {
  const std::span<std::byte> table = part(file, header.frame_table);
  if (table.size() < kFrameHead) {
    return;
  }
  const std::uint64_t unit = std::min<std::uint64_t>(get<le32>(table.subspan(4)), kFramePagesMax);
  const std::span<std::byte> checksums = part(file, header.page_checksums);
  std::vector<std::byte> pages(unit * kImagePage);
  std::uint64_t place = 0;
  for (std::size_t at = kFrameHead; at + kFrameEntry <= table.size(); at += kFrameEntry) {
    const std::uint64_t offset = get<le64>(table.subspan(at));
    const std::span<std::byte> packed = part(part(file, header.memory_offset, header.memory_size),
                                             offset, get<le64>(table.subspan(at + 8)));
    put(table.subspan(at + 16), le64(checksum(packed)));
    const std::size_t size =
        ZSTD_decompress(pages.data(), pages.size(), packed.data(), packed.size());
    for (std::uint64_t i = 0; i < unit && ZSTD_isError(size) == 0; ++i) {
      const std::span<std::byte> entry = part(checksums, (place + i) * 8, 8);
      if ((i + 1) * kImagePage <= size && !entry.empty()) {
        put(entry, le64(checksum(std::span(pages).subspan(i * kImagePage, kImagePage))));
      }
    }
    place += unit;
  }
}

void mend_checksums(std::span<std::byte> file) {
  auto header = get<Header>(file);
  mend_sections(file, header.section_table);
  if ((header.flags & vsnap::kFlagCompressed) != 0) {
    mend_frames(file, header);
  } else {
    mend_page_checksums(file, header);
  }
  for (Extent* const table :
       {&header.section_table, &header.page_table, &header.page_checksums, &header.frame_table}) {
    table->checksum = checksum(part(file, *table));
  }
  put(file, header);
  header.checksum = checksum(file.first(offsetof(Header, checksum)));
  put(file, header);
}

void mend_length(std::vector<std::byte>& file) {
  const auto header = get<Header>(file);
  const std::uint64_t begin = header.memory_offset;
  const std::uint64_t size =
      (header.flags & vsnap::kFlagMemoryFile) != 0 ? 0 : std::uint64_t{header.memory_size};
  if (begin > kSizeMax || size > kSizeMax - begin || begin + size < sizeof(Header)) {
    return;
  }
  const std::size_t before = file.size();
  file.resize(begin + size);
  for (std::uint64_t place = 0; place < size / kImagePage; ++place) {
    const std::uint64_t at = begin + place * kImagePage;
    if (at >= before) {
      put(std::span(file).subspan(at), le64(place + 1));
    }
  }
}

std::vector<std::byte> file_of(std::uint8_t what, std::span<const std::byte> input) {
  std::vector<std::byte> file(input.begin(), input.end());
  if ((what & 2U) != 0) {
    file.resize(std::max(file.size(), kHeaderFields));
    file.insert(file.begin() + kHeaderFields, sizeof(Header) - kHeaderFields, std::byte{0});
  }
  if (file.size() >= sizeof(Header) && (what & 4U) != 0) {
    mend_length(file);
  }
  if (file.size() >= sizeof(Header) && (what & 1U) != 0) {
    mend_checksums(file);
  }
  return file;
}

// What is done with it
// ----------------------------------------------------------------------------------------

template <typename T>
bool sound(const Result<T>& result) {
  CHECK(result ||
        (result.error().code() == ErrorCode::kBadInput && !result.error().message().empty()));
  return result.has_value();
}

/// As many pages as the snapshot's, in two regions if that is possible.
std::unique_ptr<GuestMemory> memory_of(std::uint64_t pages) {
  const std::uint64_t first = (pages + 1) / 2;
  std::vector<GuestRange> ranges = {*GuestRange::create(GuestAddress(0), first * kImagePage)};
  if (pages > first) {
    ranges.push_back(
        *GuestRange::create(GuestAddress(std::uint64_t{4} << 30), (pages - first) * kImagePage));
  }
  return std::move(*GuestMemory::create(ranges, {}));
}

bool same_page(const GuestMemory& memory, std::uint64_t page, std::span<const std::byte> wanted) {
  for (const GuestMemory::Region& region : memory.regions()) {
    const std::uint64_t count = region.host.size() / kImagePage;
    if (page < count) {
      return std::memcmp(&region.host[page * kImagePage], wanted.data(), kImagePage) == 0;
    }
    page -= count;
  }
  return false;
}

/// The pages of `memory` are what `runs` say of the file.
void check_pages(const GuestMemory& memory, std::span<std::byte> file, std::uint64_t offset,
                 std::span<const PageRun> runs) {
  static constexpr std::array<std::byte, kImagePage> kZeros = {};
  std::uint64_t page = 0;
  for (const PageRun& run : runs) {
    for (std::uint64_t i = 0; i < run.count; ++i, ++page) {
      std::span<const std::byte> wanted = kZeros;
      if (run.kind == PageKind::kData) {
        wanted = part(file, offset + (run.position + i) * kImagePage, kImagePage);
      }
      CHECK(same_page(memory, page, wanted));
    }
  }
}

/// A file whose checksums are right may still have something where no page is.
void clear_free_places(int fd, std::span<std::byte> file, const MemoryPlace& place,
                       std::span<const PageRun> runs) {
  std::vector<bool> taken(place.pages);
  for (const PageRun& run : runs) {
    for (std::uint64_t i = 0; i < run.count && run.kind == PageKind::kData; ++i) {
      taken[run.position + i] = true;
    }
  }
  for (std::uint64_t i = 0; i < place.pages; ++i) {
    if (!taken[i]) {
      std::ranges::fill(part(file, place.offset + i * kImagePage, kImagePage), std::byte{0});
    }
  }
  CHECK(::pwrite(fd, file.data(), file.size(), 0) == static_cast<ssize_t>(file.size()));
}

/// The pages of `memory` are what the checksums say.
void check_unpacked(const GuestMemory& memory, const MemoryLayer& layer) {
  std::uint64_t page = 0;
  for (const PageRun& run : layer.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i, ++page) {
      if (run.kind != PageKind::kData) {
        continue;
      }
      const std::uint64_t first = memory.regions()[0].host.size() / kImagePage;
      const std::span<std::byte> host =
          page < first ? memory.regions()[0].host.subspan(page * kImagePage)
                       : memory.regions()[1].host.subspan((page - first) * kImagePage);
      CHECK(checksum(host.first(kImagePage)) == layer.checksums[run.position + i]);
    }
  }
}

/// Where the snapshot's memory is.
struct Memory {
  int fd;
  std::span<std::byte> bytes;  ///< all of that file's
};

void restore_memory(int fd, const Memory& from, const SnapshotFile& snapshot,
                    std::span<const PageRun> runs) {
  const MemoryPlace& place = snapshot.memory();
  const bool compressed = snapshot.facts().compressed;
  const Result<std::vector<std::byte>> bytes = snapshot.read_page_checksums(fd);
  const Result<std::vector<std::byte>> frame_bytes = snapshot.read_frame_table(fd);
  MemoryLayer layer = {.file = from.fd, .offset = place.offset, .runs = {runs.begin(), runs.end()}};
  bool whole = sound(bytes) && bytes->size() == place.pages * sizeof(std::uint64_t);
  if (whole && compressed) {
    auto frames = sound(frame_bytes) ? decode_frame_table(*frame_bytes, place.pages, place.size)
                                     : Result<FrameTable>(fail(ErrorCode::kBadInput, "none"));
    whole = sound(frames);
    if (whole) {
      CHECK(encode_frame_table(*frames).size() == frame_bytes->size());
      layer.frames = std::move(*frames);
    }
  }
  if (whole) {
    layer.checksums.resize(place.pages);
    std::ranges::copy(*bytes, std::as_writable_bytes(std::span(layer.checksums)).begin());
    const auto memory = memory_of(snapshot.facts().pages);
    if (sound(read_memory_image(*memory, layer))) {
      if (compressed) {
        check_unpacked(*memory, layer);
      } else {
        check_pages(*memory, from.bytes, place.offset, runs);
      }
    }
  }
  if (compressed) {
    return;
  }
  clear_free_places(from.fd, from.bytes, place, runs);
  const auto memory = memory_of(snapshot.facts().pages);
  CHECK(map_memory_image(*memory, from.fd, place.offset, runs));
  check_pages(*memory, from.bytes, place.offset, runs);
}

UniqueFd new_file(const char* name) {
  return UniqueFd(::memfd_create(name, MFD_CLOEXEC));
}

void fill(int fd, std::span<const std::byte> bytes) {
  CHECK(::ftruncate(fd, 0) == 0);
  CHECK(::pwrite(fd, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
}

void use(int fd, std::span<std::byte> file, const SnapshotFile& snapshot) {
  const SnapshotFacts& facts = snapshot.facts();
  const MemoryPlace& place = snapshot.memory();
  CHECK(facts.pages > 0 && place.offset % kImagePage == 0);
  CHECK(facts.memory_file ? place.offset == 0 : place.offset + place.size == file.size());
  if (Result<SnapshotReader> reader = SnapshotReader::create(snapshot.sections()); sound(reader)) {
    CHECK(sound(reader->finish()) == snapshot.sections().empty());
  }
  const Result<std::vector<PageRun>> runs =
      decode_page_table(snapshot.page_table(), facts.pages, place.pages);
  if (!sound(runs)) {
    return;
  }
  CHECK(std::ranges::equal(encode_page_table(*runs), snapshot.page_table()));
  if (facts.pages <= kPagesMax &&
      std::ranges::find(*runs, PageKind::kAbsent, &PageRun::kind) == runs->end()) {
    if (!facts.memory_file) {
      restore_memory(fd, {.fd = fd, .bytes = file}, snapshot, *runs);
    } else if (place.size <= kSizeMax) {
      std::vector<std::byte> memory = memory_file_of(place.size);
      static const UniqueFd beside = new_file("memory");
      fill(beside.get(), memory);
      restore_memory(fd, {.fd = beside.get(), .bytes = memory}, snapshot, *runs);
    }
  }
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vireo;  // NOLINT(google-build-using-namespace)
  const std::span input = std::as_bytes(std::span(data, size));
  const std::uint8_t what = input.empty() ? 0 : data[0];
  std::vector<std::byte> file = file_of(what, input.subspan(input.empty() ? 0 : 1));
  static const UniqueFd fd = new_file("snapshot");
  fill(fd.get(), file);
  if (const Result<SnapshotFile> snapshot = SnapshotFile::read(fd.get()); sound(snapshot)) {
    use(fd.get(), file, *snapshot);
  }
  return 0;
}
