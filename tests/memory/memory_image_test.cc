// SPDX-License-Identifier: Apache-2.0
#include "src/memory/memory_image.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "src/base/checksum.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

// Neither region is whole pieces of the writer, nor whole words of a PageSet.
constexpr std::uint64_t kFirstPages = 4096 + 1003;
constexpr std::uint64_t kSecondPages = 777;
constexpr std::uint64_t kPages = kFirstPages + kSecondPages;
/// Where the image begins in its file.
constexpr std::uint64_t kOffset = 3 * kImagePage;
constexpr const char* kFileName = "vireo-memory-image-test";

std::unique_ptr<GuestMemory> new_memory(std::uint64_t first = kFirstPages) {
  const std::array ranges = {
      *GuestRange::create(GuestAddress(0), first * kImagePage),
      *GuestRange::create(GuestAddress(std::uint64_t{4} << 30), kSecondPages * kImagePage)};
  auto memory = GuestMemory::create(ranges, {});
  REQUIRE(memory.has_value());
  return std::move(*memory);
}

std::span<std::byte> page_of(const GuestMemory& memory, std::uint64_t page) {
  const std::span<const GuestMemory::Region> regions = memory.regions();
  const std::uint64_t first = regions[0].host.size() / kImagePage;
  return page < first ? regions[0].host.subspan(page * kImagePage, kImagePage)
                      : regions[1].host.subspan((page - first) * kImagePage, kImagePage);
}

bool same_bytes(const GuestMemory& one, const GuestMemory& other) {
  for (std::size_t i = 0; i < one.regions().size(); ++i) {
    const std::span<std::byte> bytes = one.regions()[i].host;
    if (std::memcmp(bytes.data(), other.regions()[i].host.data(), bytes.size()) != 0) {
      return false;
    }
  }
  return true;
}

/// How many mappings this process has of a test's file.
std::size_t mappings() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find(kFileName) != std::string::npos ? 1U : 0U;
  }
  return count;
}

UniqueFd new_file() {
  UniqueFd file(::memfd_create(kFileName, MFD_CLOEXEC));
  REQUIRE(file);
  return file;
}

/// Guest memory, and its image in a file.
class Saved {
 public:
  explicit Saved(PageKind untaken = PageKind::kZero)
      : image(*MemoryImageWriter::create(*memory, file.get(), kOffset, untaken)) {}

  void put(std::uint64_t page, unsigned value, std::size_t at = 0) {
    page_of(*memory, page)[at] = static_cast<std::byte>(value);
    changed.add(page);
  }
  void fill(std::uint64_t page, unsigned value) {
    std::ranges::fill(page_of(*memory, page), static_cast<std::byte>(value));
    changed.add(page);
  }

  /// A round of what has changed, by two threads; `meanwhile` what changes between its parts.
  Result<> take(const std::function<void()>& meanwhile = [] {}) {
    const PageSet pages = changed;
    changed.clear();
    image.begin_round(pages);
    for_each_piece([this](std::size_t piece) { image.examine(piece); });
    meanwhile();
    image.place_pages();
    std::atomic<bool> failed = false;
    for_each_piece([&](std::size_t piece) { failed = failed || !image.write(piece); });
    return failed ? fail_errno(EIO, "a piece") : Result<>();
  }
  /// The same of one page after the other, each a round.
  void take_each(std::initializer_list<std::uint64_t> pages) {
    for (const std::uint64_t page : pages) {
      put(page, 0x80U + static_cast<unsigned>(page % 100));
      REQUIRE(take());
    }
  }

  /// The page table as a reader of the file has it, whose end is here.
  std::vector<PageRun> runs() const {
    const auto size = static_cast<off_t>(kOffset + image.places() * kImagePage);
    REQUIRE(::ftruncate(file.get(), size) == 0);
    const auto read =
        decode_page_table(encode_page_table(image.page_table()), kPages, image.places());
    REQUIRE(read);
    return *read;
  }
  MemoryLayer layer() const {
    const std::span<const std::uint64_t> checksums = image.checksums();
    return {.file = file.get(),
            .offset = kOffset,
            .runs = runs(),
            .checksums = {checksums.begin(), checksums.end()},
            .frames = {}};
  }
  /// What is restored, either way, is what was saved.
  void check() const {
    const std::vector<PageRun> table = runs();
    const auto mapped = new_memory();
    REQUIRE(map_memory_image(*mapped, file.get(), kOffset, table));
    CHECK(same_bytes(*mapped, *memory));
    const auto read = new_memory();
    REQUIRE(read_memory_image(*read, layer()));
    CHECK(same_bytes(*read, *memory));
    check_checksums(table);
  }

  std::unique_ptr<GuestMemory> memory = new_memory();
  UniqueFd file = new_file();
  MemoryImageWriter image;
  PageSet changed{kPages};

 private:
  template <typename Work>
  void for_each_piece(Work work) {
    std::atomic<std::size_t> next = 0;
    const auto run = [&] {
      for (std::size_t piece = next++; piece < image.pieces(); piece = next++) {
        work(piece);
      }
    };
    std::thread other(run);
    run();
    other.join();
  }
  void check_checksums(std::span<const PageRun> table) const {
    std::vector<std::uint64_t> wanted(image.places());
    std::uint64_t page = 0;
    for (const PageRun& run : table) {
      for (std::uint64_t i = 0; i < run.count && run.kind == PageKind::kData; ++i) {
        wanted[run.position + i] = checksum(page_of(*memory, page + i));
      }
      page += run.count;
    }
    CHECK(std::ranges::equal(image.checksums(), wanted));
  }
};

/// Pages in clusters, with gaps between them above and below what takes places along.
void change(Saved& saved, std::mt19937_64& random) {
  std::uint64_t page = random() % kPages;
  for (std::uint64_t left = 1 + random() % 40; left > 0 && page < kPages; --left) {
    const auto value = static_cast<unsigned>(random());
    switch (random() % 4) {
      case 0:
        saved.fill(page, 0);
        break;
      case 1:
        saved.fill(page, value);
        break;
      default:
        saved.put(page, value | 1, random() % kImagePage);
    }
    page += random() % 8 == 0 ? 508 + random() % 8 : 1 + random() % 2 * random() % 9;
  }
}

TEST_CASE("memory image: after any rounds of changes it is the memory, mapped and read") {
  for (unsigned seed = 0; seed < 6; ++seed) {
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    Saved saved;
    for (int round = 0; round < 4; ++round) {
      for (int i = 0; i < 8; ++i) {
        change(saved, random);
      }
      // As a guest does that runs: what changes meanwhile is of the next round.
      REQUIRE(saved.take([&] { change(saved, random); }));
      REQUIRE(saved.take());
      saved.check();
    }
  }
}

TEST_CASE("memory image: one byte anywhere makes a page one of data") {
  Saved saved;
  for (std::uint64_t page = 0; page < kImagePage; ++page) {
    saved.put(page, 1, page);
  }
  saved.changed.add(kImagePage);
  REQUIRE(saved.take());
  const std::vector<PageRun> wanted = {
      {.kind = PageKind::kData, .count = kImagePage},
      {.kind = PageKind::kZero, .count = static_cast<std::uint32_t>(kPages - kImagePage)}};
  CHECK(saved.runs() == wanted);
  saved.check();
}

TEST_CASE("memory image: a page that was data stays it, one that was zero becomes it") {
  Saved saved;
  saved.put(1, 7);
  saved.changed.add(2);
  REQUIRE(saved.take());
  CHECK(saved.image.places() == 1);
  saved.put(1, 0);
  saved.put(2, 9);
  REQUIRE(saved.take());
  CHECK(saved.image.places() == 2);
  saved.check();
  saved.put(1, 5);
  REQUIRE(saved.take());
  CHECK(saved.image.places() == 2);
  saved.check();
}

TEST_CASE("memory image: fewer than 512 pages between data are mapped along, more take no place") {
  for (const std::uint64_t next : {2U, 511U, 512U, 513U, 1000U}) {
    Saved saved;
    saved.put(7, 1);
    saved.put(7 + next, 2);
    REQUIRE(saved.take());
    const bool along = next - 1 < 512;
    CHECK(saved.image.places() == (along ? next + 1 : 2));
    const std::vector<PageRun> table = saved.runs();
    CHECK(table.size() == 5);  // pages between are zero, whether they have places or not
    const auto restored = new_memory();
    REQUIRE(map_memory_image(*restored, saved.file.get(), kOffset, table));
    CHECK(mappings() == (along ? 1 : 2));
    saved.check();
    // A place that was taken along becomes the page's.
    saved.put(7 + next / 2, 3);
    REQUIRE(saved.take());
    CHECK(saved.image.places() == (along ? next + 1 : 3));
    saved.check();
  }
}

TEST_CASE("memory image: zero pages are not mapped along with another's place") {
  Saved saved;
  saved.put(0, 1);
  for (std::uint64_t page = 1000; page < 1004; ++page) {
    saved.put(page, 2);
  }
  REQUIRE(saved.take());
  // Its place, 5, is as far from that of page 0 as the page is; 1 to 4 are not between the two.
  saved.take_each({5});
  CHECK(saved.image.places() == 6);
  saved.check();
}

TEST_CASE("memory image: one mapping's pages may lie in both regions") {
  Saved saved;
  for (std::uint64_t page = kFirstPages - 3; page < kFirstPages + 3; ++page) {
    saved.put(page, static_cast<unsigned>(page % 7 + 1));
  }
  REQUIRE(saved.take());
  CHECK(saved.runs().size() == 3);
  saved.check();
}

TEST_CASE("memory image: what no round has taken is absent where it is told so") {
  Saved saved(PageKind::kAbsent);
  saved.put(1, 1);
  saved.changed.add(2);
  saved.put(5, 1);
  REQUIRE(saved.take());
  const std::vector<PageRun> wanted = {
      {.kind = PageKind::kAbsent, .count = 1},
      {.kind = PageKind::kData, .count = 1},
      {.kind = PageKind::kZero, .count = 1},
      {.kind = PageKind::kAbsent, .count = 2},
      {.kind = PageKind::kData, .count = 1, .position = 4},
      {.kind = PageKind::kAbsent, .count = static_cast<std::uint32_t>(kPages - 6)}};
  CHECK(saved.runs() == wanted);
}

/// A file whose page at each place tells the place.
UniqueFd numbered_file(std::uint64_t places) {
  UniqueFd file = new_file();
  std::vector<std::uint64_t> words(places * kImagePage / sizeof(std::uint64_t));
  for (std::uint64_t place = 0; place < places; ++place) {
    words[place * 512 + place % 512] = place + 1;
  }
  const std::span<const std::byte> bytes = std::as_bytes(std::span(words));
  REQUIRE(::pwrite(file.get(), bytes.data(), bytes.size(), kOffset) ==
          static_cast<ssize_t>(bytes.size()));
  return file;
}

TEST_CASE("memory image: places between belong to nobody, or there are two mappings") {
  const UniqueFd file = numbered_file(10);
  struct Case {
    std::uint64_t position;  // of a run far from two of data with three zero pages between
    std::uint32_t count;
    bool along;
  };
  const auto [position, count, along] = GENERATE(
      Case{1, 1, false}, Case{2, 1, false}, Case{3, 1, false}, Case{0, 5, false}, Case{0, 2, false},
      Case{3, 4, false}, Case{0, 1, true}, Case{4, 1, true}, Case{8, 2, true});
  const bool before = GENERATE(false, true);
  INFO(count << " pages at " << position << (before ? " before" : " behind"));
  const PageRun far = {.kind = PageKind::kData, .count = count, .position = position};
  const PageRun zeros = {.kind = PageKind::kZero, .count = 1000};
  std::vector<PageRun> runs = {{.kind = PageKind::kData, .count = 1},
                               {.kind = PageKind::kZero, .count = 3},
                               {.kind = PageKind::kData, .count = 1, .position = 4}};
  runs.insert(before ? runs.begin() : runs.end(), {before ? far : zeros, before ? zeros : far});
  const auto memory = new_memory();
  REQUIRE(map_memory_image(*memory, file.get(), kOffset, runs));
  CHECK(mappings() == (along ? 2 : 3));
  const std::uint64_t first = before ? count + zeros.count : 0;
  for (std::uint64_t page = first + 1; page < first + 4; ++page) {
    CHECK(std::ranges::all_of(page_of(*memory, page),
                              [](std::byte byte) { return byte == std::byte{0}; }) == !along);
  }
}

TEST_CASE("memory image: 512 zero pages are not mapped, though they have places") {
  for (const std::uint32_t zeros : {511U, 512U}) {
    const UniqueFd file = numbered_file(2 + zeros);
    const std::vector<PageRun> runs = {
        {.kind = PageKind::kData, .count = 1},
        {.kind = PageKind::kZero, .count = zeros},
        {.kind = PageKind::kData, .count = 1, .position = zeros + 1}};
    const auto memory = new_memory();
    REQUIRE(map_memory_image(*memory, file.get(), kOffset, runs));
    CHECK(mappings() == (zeros < 512 ? 1 : 2));
  }
}

TEST_CASE("memory image: more pieces than a process may map come back, the largest mapped") {
  // Of 8191 pages alone, mapped are so many as there is room for beside the pairs.
  for (const auto& [alone, pairs, mapped] :
       {std::array<std::uint64_t, 3>{8000, 192, 8192}, {8000, 193, 193}, {9000, 0, 0}}) {
    const std::uint64_t places = alone + 2 * pairs;
    const UniqueFd file = numbered_file(places);
    // The last is the first, so that none goes on with the one before.
    std::vector<PageRun> runs;
    for (std::uint64_t place = places; place > 0;) {
      const std::uint32_t count = place > alone ? 2 : 1;
      place -= count;
      runs.push_back({.kind = PageKind::kData, .count = count, .position = place});
    }
    const auto memory = new_memory(places);
    REQUIRE(map_memory_image(*memory, file.get(), kOffset, runs));
    CHECK(mappings() == mapped);
    std::uint64_t page = 0;
    for (const PageRun& run : runs) {
      for (std::uint64_t place = run.position; place < run.position + run.count; ++place, ++page) {
        std::array<std::uint64_t, 512> wanted = {};
        wanted[place % 512] = place + 1;
        REQUIRE(std::memcmp(page_of(*memory, page).data(), wanted.data(), kImagePage) == 0);
      }
    }
  }
}

TEST_CASE("memory image: what a guest writes does not reach the file") {
  Saved saved;
  saved.take_each({3, 4, 9, 4000, 3000});
  const auto first = new_memory();
  REQUIRE(map_memory_image(*first, saved.file.get(), kOffset, saved.runs()));
  for (const GuestMemory::Region& region : first->regions()) {
    std::ranges::fill(region.host, std::byte{0xee});
  }
  saved.check();
}

TEST_CASE("memory image: a page that is another one is refused by its place, when it is read") {
  Saved saved;
  for (std::uint64_t page = 10; page < 14; ++page) {
    saved.put(page, 1);
  }
  REQUIRE(saved.take());
  const MemoryLayer layer = saved.layer();
  const auto at = static_cast<off_t>(kOffset + 2 * kImagePage);
  for (const off_t byte : {0, 1, 2000, 4095}) {
    std::byte was{};
    REQUIRE(::pread(saved.file.get(), &was, 1, at + byte) == 1);
    const std::byte other = was ^ std::byte{0x10};
    REQUIRE(::pwrite(saved.file.get(), &other, 1, at + byte) == 1);
    const Result<> read = read_memory_image(*new_memory(), layer);
    REQUIRE_FALSE(read);
    CHECK(read.error().code() == ErrorCode::kBadInput);
    CHECK(read.error().message() ==
          "the page at " + std::to_string(at) + ": is damaged: its checksum is another one");
    REQUIRE(::pwrite(saved.file.get(), &was, 1, at + byte) == 1);
  }
  saved.check();
  REQUIRE(::ftruncate(saved.file.get(), at + 1) == 0);
  const Result<> read = read_memory_image(*new_memory(), layer);
  REQUIRE_FALSE(read);
  CHECK(read.error().code() == ErrorCode::kBadInput);
}

/// What a write is refused with behind so many bytes of a file.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::uint64_t bytes) {
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    const rlimit limit = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_ = {};
  sighandler_t handler_ = ::signal(SIGXFSZ, SIG_IGN);
};

TEST_CASE("memory image: what cannot be written, or is no file, is an error") {
  const auto memory = new_memory();
  std::ranges::fill(page_of(*memory, 4096 + 5), std::byte{1});
  PageSet pages(kPages);
  for (std::uint64_t page = 0; page < 4; ++page) {
    std::ranges::fill(page_of(*memory, page), std::byte{1});
    pages.add(page);
  }
  const auto error_of_write = [&](int fd) {
    auto image = MemoryImageWriter::create(*memory, fd, kOffset, PageKind::kZero);
    REQUIRE(image);
    image->begin_round(pages);
    for (std::size_t piece = 0; piece < image->pieces(); ++piece) {
      image->examine(piece);
    }
    image->place_pages();
    const Result<> written = image->write(0);
    CHECK(image->write(1));  // nothing of it is taken
    REQUIRE_FALSE(written);
    CHECK(written.error().code() == ErrorCode::kSystem);
    CHECK(written.error().message().starts_with("writing guest memory: "));
    return written.error().errnum();
  };
  const UniqueFd file = new_file();
  const std::string path = "/proc/self/fd/" + std::to_string(file.get());
  CHECK(error_of_write(UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)).get()) == EBADF);
  CHECK(error_of_write(UniqueFd(::open("/dev/full", O_WRONLY | O_CLOEXEC)).get()) == ENOSPC);
  {
    const FileSizeLimit limit(kOffset + 2 * kImagePage + 100);
    CHECK(error_of_write(file.get()) == EFBIG);
  }
  {
    Saved saved;
    saved.take_each({9, 20, 1});
    const FileSizeLimit limit(kOffset + 2 * kImagePage);
    for (const std::uint64_t page : {1U, 9U, 20U}) {
      saved.put(page, 1);
    }
    CHECK_FALSE(saved.take());  // though all but the first can be written
  }
  const PageRun run = {.kind = PageKind::kData, .count = kPages};
  const MemoryLayer layer = {.file = -1,
                             .offset = kOffset,
                             .runs = {run},
                             .checksums = std::vector<std::uint64_t>(kPages),
                             .frames = {}};
  for (const auto& restored :
       {map_memory_image(*memory, -1, kOffset, layer.runs), read_memory_image(*memory, layer)}) {
    REQUIRE_FALSE(restored);
    CHECK(restored.error().errnum() == EBADF);
  }
}

TEST_CASE("memory image: more memory than places can be counted is refused") {
  const std::array ranges = {
      *GuestRange::create(GuestAddress(0), std::uint64_t{0xffffffff} * kImagePage)};
  const auto memory = GuestMemory::create(ranges, {});
  REQUIRE(memory);
  const auto image = MemoryImageWriter::create(**memory, -1, 0, PageKind::kZero);
  REQUIRE_FALSE(image);
  CHECK(image.error().code() == ErrorCode::kConfig);
}

}  // namespace
}  // namespace vireo
