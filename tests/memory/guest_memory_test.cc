// SPDX-License-Identifier: Apache-2.0
#include "src/memory/guest_memory.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "src/memory/bus_error.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

GuestRange range(std::uint64_t start, std::uint64_t size) {
  return *GuestRange::create(GuestAddress(start), size);
}

std::unique_ptr<GuestMemory> two_regions(const GuestMemoryConfig& config = {}) {
  const std::array ranges = {range(0, 4 * kMiB), range(std::uint64_t{4} << 30, 2 * kMiB)};
  auto memory = GuestMemory::create(ranges, config);
  REQUIRE(memory.has_value());
  return std::move(*memory);
}

TEST_CASE("guest memory: pages that are present are counted") {
  for (const bool shared : {false, true}) {
    const auto memory = two_regions({.shared = shared});
    CHECK(memory->resident_pages() == 0);
    REQUIRE(memory->write_object(GuestAddress(kMiB), std::uint8_t{1}));
    REQUIRE(memory->write_object(GuestAddress(kMiB + 4095), std::uint8_t{1}));
    REQUIRE(memory->write_object(GuestAddress(std::uint64_t{4} << 30), std::uint8_t{1}));
    CHECK(memory->resident_pages() == 2);
    memory->populate(GuestAddress(0), 16UL * 4096);
    CHECK(memory->resident_pages() == 18);
  }
}

TEST_CASE("guest memory: copies reach their region and nothing else") {
  for (const bool shared : {false, true}) {
    const auto memory = two_regions({.shared = shared});
    CHECK(memory->size() == 6 * kMiB);
    CHECK(memory->end() == GuestAddress((std::uint64_t{4} << 30) + 2 * kMiB));
    const GuestAddress high((std::uint64_t{4} << 30) + 8);
    REQUIRE(memory->write_object(high, std::uint64_t{0x1122334455667788}));
    CHECK(memory->read_object<std::uint64_t>(high) == 0x1122334455667788);
    CHECK(memory->read_object<std::uint64_t>(GuestAddress(8)) == 0);
  }
}

TEST_CASE("guest memory: what is not wholly inside one region is refused") {
  const auto memory = two_regions();
  const std::uint64_t end = 4 * kMiB;
  CHECK(memory->slice(GuestAddress(end - 8), 8).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(end - 8), 9).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(end), 1).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(0), end + 1).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(std::uint64_t{4} << 30), ~std::uint64_t{0}).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(~std::uint64_t{0}), 2).has_value());
  std::array<std::byte, 16> bytes = {};
  CHECK_FALSE(memory->write(GuestAddress(end - 8), bytes));
  CHECK_FALSE(memory->read(GuestAddress(end - 8), bytes));
}

TEST_CASE("guest memory: host and guest addresses are congruent modulo 2 MiB") {
  for (int i = 0; i < 8; ++i) {
    const auto memory = two_regions();
    for (const GuestMemory::Region& region : memory->regions()) {
      const auto host = reinterpret_cast<std::uint64_t>(region.host.data());
      CHECK(host % (2 * kMiB) == region.range.start().value() % (2 * kMiB));
    }
  }
}

TEST_CASE("guest memory: populate makes exactly the asked pages present") {
  const auto memory = two_regions();
  memory->populate(GuestAddress(kMiB + 100), 5000);  // touches two pages
  std::array<unsigned char, 4 * kMiB / 4096> present = {};
  REQUIRE(::mincore(memory->regions()[0].host.data(), 4 * kMiB, present.data()) == 0);
  std::size_t count = 0;
  for (const unsigned char page : present) {
    count += page & 1U;
  }
  CHECK(count == 2);
  CHECK((present[256] & 1U) == 1);
  memory->populate(GuestAddress(64 * kMiB), 5000);  // outside: nothing happens
}

TEST_CASE("guest memory: a tebibyte is only address space") {
  const std::array ranges = {range(0, std::uint64_t{3} << 30),
                             range(std::uint64_t{4} << 30, std::uint64_t{1021} << 30)};
  const auto memory = GuestMemory::create(ranges, {});
  REQUIRE(memory.has_value());
  CHECK((*memory)->write_object(GuestAddress((std::uint64_t{1024} << 30)), 1));
}

TEST_CASE("guest memory: huge pages that are not to be had are named") {
  const std::array ranges = {range(0, std::uint64_t{64} << 30)};
  const auto memory = GuestMemory::create(ranges, {.huge_pages = HugePages::k2M});
  REQUIRE_FALSE(memory.has_value());
  CHECK(memory.error().code() == ErrorCode::kSystem);
  CHECK(memory.error().message().find("machine.hugepages") != std::string::npos);

  const std::array odd = {range(0, 3 * kMiB)};
  const auto refused = GuestMemory::create(odd, {.huge_pages = HugePages::k2M});
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code() == ErrorCode::kConfig);
}

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kFirstPages = 10 * kMiB / kPage + 7;

/// More pages than are asked for at a time, and an end within a word of a set.
std::unique_ptr<GuestMemory> odd_regions(const GuestMemoryConfig& config = {}) {
  const std::array ranges = {range(0, kFirstPages * kPage),
                             range(std::uint64_t{4} << 30, 20 * kMiB)};
  auto memory = GuestMemory::create(ranges, config);
  REQUIRE(memory.has_value());
  return std::move(*memory);
}

std::set<std::uint64_t> populated(const GuestMemory& memory, int pagemap) {
  PageSet pages(memory.size() / kPage);
  memory.add_populated(pagemap, pages);
  std::set<std::uint64_t> numbers;
  pages.for_each(0, pages.pages(), [&numbers](std::uint64_t page) { numbers.insert(page); });
  return numbers;
}

/// So many pages that hold their number, from 1 on.
UniqueFd numbered_file(std::size_t pages) {
  UniqueFd file(::memfd_create("numbered", MFD_CLOEXEC));
  for (std::size_t page = 0; page < pages; ++page) {
    const std::array<std::uint64_t, kPage / 8> words = {page + 1};
    REQUIRE(::pwrite(file.get(), words.data(), kPage, static_cast<off_t>(page * kPage)) ==
            static_cast<ssize_t>(kPage));
  }
  return file;
}

std::uint64_t number_at(std::span<const std::byte> bytes, std::size_t page) {
  std::uint64_t number = 0;
  std::memcpy(&number, &bytes[page * kPage], sizeof(number));
  return number;
}

TEST_CASE("guest memory: what may hold something is what was touched, by /proc/self/pagemap") {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  REQUIRE(pagemap);
  const auto memory = odd_regions();
  CHECK(populated(*memory, pagemap.get()).empty());
  const std::span<std::byte> low = memory->regions()[0].host;
  const std::span<std::byte> high = memory->regions()[1].host;
  low[0] = low[5 * kPage + 4095] = low[(kFirstPages - 1) * kPage] = std::byte{1};
  high[0] = high[4095 * kPage] = high[4096 * kPage] = high[high.size() - 1] = std::byte{1};
  const std::set<std::uint64_t> wanted = {0,
                                          5,
                                          kFirstPages - 1,
                                          kFirstPages,
                                          kFirstPages + 4095,
                                          kFirstPages + 4096,
                                          kFirstPages + 5119};
  CHECK(populated(*memory, pagemap.get()) == wanted);

  // Added to what is there already.
  PageSet pages(memory->size() / kPage);
  pages.add(77);
  memory->add_populated(pagemap.get(), pages);
  CHECK(pages.count() == wanted.size() + 1);

  REQUIRE(memory->clear());
  CHECK(populated(*memory, pagemap.get()).empty());
}

TEST_CASE("guest memory: all may hold something where nobody tells, or others have it too") {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const UniqueFd empty(::memfd_create("empty", MFD_CLOEXEC));
  const auto memory = odd_regions();
  const std::size_t all = memory->size() / kPage;
  CHECK(populated(*memory, -1).size() == all);
  CHECK(populated(*memory, empty.get()).size() == all);
  CHECK(populated(*odd_regions({.shared = true}), pagemap.get()).size() == all);
}

TEST_CASE("guest memory: a mapped file is read as it is, and never written") {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const UniqueFd file = numbered_file(9);
  const auto memory = odd_regions();
  const std::span<std::byte> low = memory->regions()[0].host;
  const std::span<std::byte> high = memory->regions()[1].host;
  REQUIRE(memory->map_file(low.subspan((kFirstPages - 2) * kPage, 2 * kPage), file.get(), kPage));
  REQUIRE(memory->map_file(high.subspan(4094 * kPage, 4 * kPage), file.get(), 5 * kPage));
  // All of it, though none is touched: it is no zeros.
  std::set<std::uint64_t> wanted = {kFirstPages - 2,    kFirstPages - 1,    kFirstPages + 4094,
                                    kFirstPages + 4095, kFirstPages + 4096, kFirstPages + 4097};
  CHECK(populated(*memory, pagemap.get()) == wanted);
  CHECK(number_at(low, kFirstPages - 2) == 2);
  CHECK(number_at(low, kFirstPages - 1) == 3);
  CHECK(number_at(high, 4094) == 6);
  CHECK(number_at(high, 4097) == 9);

  for (const GuestMemory::Region& region : memory->regions()) {
    std::ranges::fill(region.host, std::byte{0xff});
  }
  std::array<std::byte, 9 * kPage> content = {};
  REQUIRE(::pread(file.get(), content.data(), content.size(), 0) ==
          static_cast<ssize_t>(content.size()));
  for (std::size_t page = 0; page < 9; ++page) {
    CHECK(number_at(content, page) == page + 1);
  }
}

TEST_CASE("guest memory: made present, a file's pages are the file's, and others ours") {
  const auto memory = two_regions();
  const std::span<std::byte> host = memory->regions()[0].host;
  const UniqueFd file(::memfd_create("mapped", MFD_CLOEXEC));
  REQUIRE(::ftruncate(file.get(), 8 * 4096) == 0);
  // Not in the order in which they lie.
  REQUIRE(memory->map_file(host.subspan(6 * 4096, 2 * 4096), file.get(), 4096));
  REQUIRE(memory->map_file(host.subspan(4096, 3 * 4096), file.get(), 0));
  REQUIRE(memory->prefault());
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const std::uint64_t pages = memory->size() / 4096;
  std::uint64_t first = 0;
  for (const GuestMemory::Region& region : memory->regions()) {
    for (std::uint64_t page = 0; page < region.host.size() / 4096; ++page) {
      std::uint64_t entry = 0;
      REQUIRE(
          read_full_at(pagemap.get(), std::as_writable_bytes(std::span(&entry, 1)),
                       (reinterpret_cast<std::uint64_t>(region.host.data()) / 4096 + page) * 8));
      const bool of_file = first == 0 && ((page >= 1 && page < 4) || page == 6 || page == 7);
      CHECK((entry >> 63) == 1);
      CHECK((entry >> 61 & 1) == (of_file ? 1 : 0));
    }
    first += region.host.size() / 4096;
  }
  PageSet changed(pages);
  REQUIRE(memory->add_private(pagemap.get(), changed));
  CHECK(changed.count() == pages - 5);
}

TEST_CASE("guest memory: cleared, all of it reads as zeros, and the file stays") {
  const auto config = GENERATE(GuestMemoryConfig{}, GuestMemoryConfig{.shared = true},
                               GuestMemoryConfig{.prefault = true});
  const bool mapped = GENERATE(false, true);
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const UniqueFd file = numbered_file(4);
  const auto memory = odd_regions(config);
  const std::span<std::byte> low = memory->regions()[0].host;
  if (mapped) {
    REQUIRE(memory->map_file(low.subspan(8 * kPage, 4 * kPage), file.get(), 0));
  }
  low[0] = low[9 * kPage + 8] = low[kPage * 500] = std::byte{1};
  memory->regions()[1].host.back() = std::byte{1};
  REQUIRE(memory->clear());
  for (const GuestMemory::Region& region : memory->regions()) {
    CHECK(number_at(region.host, 0) == 0);
    CHECK(std::memcmp(region.host.data(), region.host.data() + 8, region.host.size() - 8) == 0);
    CHECK(reinterpret_cast<std::uint64_t>(region.host.data()) % (2 * kMiB) ==
          region.range.start().value() % (2 * kMiB));
  }
  std::array<std::byte, 4 * kPage> content = {};
  REQUIRE(::pread(file.get(), content.data(), content.size(), 0) ==
          static_cast<ssize_t>(content.size()));
  CHECK(number_at(content, 1) == 2);

  // It is memory again: what is written stays, and the file has no part in it.
  low[8 * kPage] = std::byte{5};
  CHECK(number_at(low, 8) == 5);
  REQUIRE(memory->clear());
  if (!config.shared && !config.prefault) {
    CHECK(populated(*memory, pagemap.get()).empty());
  }
  CHECK(number_at(low, 8) == 0);
}

TEST_CASE("guest memory: what cannot be mapped is an error, and the memory as it was") {
  const UniqueFd file = numbered_file(1);
  const auto memory = two_regions();
  const std::span<std::byte> pages = memory->regions()[0].host.first(2 * kPage);
  pages[0] = std::byte{3};
  const UniqueFd unreadable(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  CHECK(memory->map_file(pages, -1, 0).error().errnum() == EBADF);
  CHECK(memory->map_file(pages, unreadable.get(), 0).error().code() == ErrorCode::kPermission);
  CHECK(memory->map_file(pages, file.get(), 100).error().errnum() == EINVAL);
  CHECK(pages[0] == std::byte{3});
}

/// Runs `body` in a child whose stderr is read back; returns the wait status.
template <typename Body>
int in_child(std::string& output, Body body) {
  std::array<int, 2> pipe_ends = {};
  REQUIRE(::pipe(pipe_ends.data()) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(pipe_ends[1], STDERR_FILENO);
    body();
    ::_exit(0);
  }
  ::close(pipe_ends[1]);
  std::array<char, 512> buffer = {};
  ssize_t count = 0;
  while ((count = ::read(pipe_ends[0], buffer.data(), buffer.size())) > 0) {
    output.append(buffer.data(), static_cast<std::size_t>(count));
  }
  ::close(pipe_ends[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

TEST_CASE("bus error: in guest memory it is one line and status 71") {
  std::string output;
  const int status = in_child(output, [] {
    const auto memory = two_regions();
    // A file that is shorter than its mapping stands for memory that the host cannot provide.
    const int file = ::memfd_create("short", 0);
    const void* const mapped = ::mmap(memory->regions()[0].host.data(), 4096,
                                      PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    if (mapped == MAP_FAILED || !watch_bus_errors(*memory, lost_page_text(""), nullptr)) {
      ::_exit(1);
    }
    std::memset(memory->regions()[0].host.data(), 1, 1);
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 71);
  CHECK(output.starts_with("vireo: guest memory: "));
  CHECK(output.find('\n') == output.size() - 1);
}

TEST_CASE("bus error: anywhere else it is still fatal") {
  std::string output;
  const int status = in_child(output, [] {
    const auto memory = two_regions();
    const int file = ::memfd_create("short", 0);
    void* const other = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (!watch_bus_errors(*memory, lost_page_text(""), nullptr)) {
      ::_exit(1);
    }
    std::memset(other, 1, 1);
  });
  CHECK(WIFSIGNALED(status));
}

}  // namespace
}  // namespace vireo
