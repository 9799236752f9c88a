// SPDX-License-Identifier: Apache-2.0
// What the operator asked of guest memory, as the kernel tells it (proc(5), smaps), and the ends of
// its regions.
#include <array>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "src/memory/bus_error.h"
#include "src/memory/guest_memory.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kHigh = std::uint64_t{4} << 30;

std::unique_ptr<GuestMemory> make_memory(const GuestMemoryConfig& config = {}) {
  const std::array ranges = {*GuestRange::create(GuestAddress(0), 4 * kMiB),
                             *GuestRange::create(GuestAddress(kHigh), 2 * kMiB)};
  auto memory = GuestMemory::create(ranges, config);
  REQUIRE(memory.has_value());
  return std::move(*memory);
}

/// What smaps says of the mapping that holds `address`.
struct Smaps {
  explicit Smaps(const std::byte* address) {
    const auto wanted = reinterpret_cast<std::uint64_t>(address);
    std::ifstream file("/proc/self/smaps");
    bool inside = false;
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string first;
      words >> first;
      if (!first.ends_with(':')) {
        std::uint64_t start = 0;
        std::uint64_t end = 0;
        char dash = 0;
        std::istringstream(first) >> std::hex >> start >> dash >> end;
        inside = start <= wanted && wanted < end;
        if (inside) {
          words >> permissions;
        }
      } else if (inside && first == "VmFlags:") {
        std::getline(words, flags);
      } else if (inside && first == "Rss:") {
        words >> resident_kib;
      }
    }
  }
  bool has(const char* flag) const {
    return (flags + " ").find(std::string(" ") + flag + " ") != std::string::npos;
  }

  std::string permissions;
  std::string flags;
  std::uint64_t resident_kib = 0;
};

TEST_CASE("guest memory: private unless it is to be shared, and never in a core dump") {
  for (const bool shared : {false, true}) {
    const auto memory = make_memory({.shared = shared});
    for (const GuestMemory::Region& region : memory->regions()) {
      const Smaps smaps(region.host.data());
      CHECK(smaps.permissions == (shared ? "rw-s" : "rw-p"));
      CHECK(smaps.has("dd"));
      CHECK_FALSE(smaps.has("hg"));
      CHECK_FALSE(smaps.has("mg"));
      CHECK(smaps.resident_kib == 0);
    }
  }
}

TEST_CASE("guest memory: transparent huge pages, merging and prefault are asked of the kernel") {
  const auto huge = make_memory({.huge_pages = HugePages::kTransparent});
  CHECK(Smaps(huge->regions()[1].host.data()).has("hg"));
  const auto mergeable = make_memory({.mergeable = true});
  CHECK(Smaps(mergeable->regions()[1].host.data()).has("mg"));
  const auto present = make_memory({.prefault = true});
  CHECK(Smaps(present->regions()[0].host.data()).resident_kib == 4096);
  CHECK(Smaps(present->regions()[1].host.data()).resident_kib == 2048);
}

TEST_CASE("guest memory: not charged before it is touched") {
  const auto memory = make_memory();
  CHECK(Smaps(memory->regions()[0].host.data()).has("nr"));
}

TEST_CASE("guest memory: slices up to the last byte, and empty ones at the ends") {
  const auto memory = make_memory();
  CHECK(memory->size() == 6 * kMiB);
  CHECK(memory->end() == GuestAddress(kHigh + 2 * kMiB));
  CHECK(memory->slice(GuestAddress(0), 4 * kMiB)->size() == 4 * kMiB);
  CHECK(memory->slice(GuestAddress(kHigh), 2 * kMiB)->data() == memory->regions()[1].host.data());
  CHECK(memory->slice(GuestAddress(4 * kMiB), 0).has_value());
  CHECK(memory->slice(GuestAddress(kHigh), 0).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(4 * kMiB + 1), 0).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(kHigh - 1), 1).has_value());
  // Sizes that would wrap round.
  for (const std::uint64_t size : {~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    CHECK_FALSE(memory->slice(GuestAddress(8), size).has_value());
    CHECK_FALSE(memory->slice(GuestAddress(kHigh + 8), size).has_value());
  }
}

TEST_CASE("guest memory: populate reaches the page of the last byte") {
  const auto memory = make_memory();
  memory->populate(GuestAddress(4 * kMiB - 1), 1);
  memory->populate(GuestAddress(8192), 4097);
  std::array<unsigned char, 4 * kMiB / 4096> present = {};
  REQUIRE(::mincore(memory->regions()[0].host.data(), 4 * kMiB, present.data()) == 0);
  CHECK((present.back() & 1U) == 1);
  CHECK((present[2] & 1U) == 1);
  CHECK((present[3] & 1U) == 1);
  CHECK((present[4] & 1U) == 0);
}

/// How a child ends in which a page of a file that ends before it is touched: beyond guest memory,
/// or in it, `offset` from its end.
int touch_missing_page(std::ptrdiff_t offset, void (*at_exit)(), bool watched) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const rlimit no_core = {};
    ::setrlimit(RLIMIT_CORE, &no_core);
    ::close(STDERR_FILENO);
    // Room behind the memory, so that the page after it is ours to place.
    const auto room = Mapping::create(4 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                      -1, 0, "test");
    const auto memory = GuestMemory::adopt(GuestAddress(0), room->bytes().first(2 * kMiB));
    std::byte* const page = room->data() + 2 * kMiB + offset;
    const int file = ::memfd_create("short", MFD_CLOEXEC);
    const void* const mapped =
        ::mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    if (mapped == MAP_FAILED || !watch_bus_errors(*memory, lost_page_text(""), at_exit)) {
      ::_exit(1);
    }
    if (!watched) {
      forget_bus_errors();
    }
    std::memset(page, 1, 1);
    ::_exit(2);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

TEST_CASE("bus error: the last page is guest memory, the next one is not") {
  CHECK(touch_missing_page(-4096, nullptr, true) == 71);
  CHECK(touch_missing_page(0, nullptr, true) == 1000 + SIGBUS);
}

TEST_CASE("bus error: the terminal is restored before the end") {
  CHECK(touch_missing_page(-4096, [] { ::_exit(33); }, true) == 33);
}

TEST_CASE("bus error: memory that is forgotten is none") {
  CHECK(touch_missing_page(-4096, nullptr, false) == 1000 + SIGBUS);
}

}  // namespace
}  // namespace vireo
