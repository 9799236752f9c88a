// SPDX-License-Identifier: Apache-2.0
#include "src/memory/page_feeder.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <optional>
#include <string>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "src/base/checksum.h"
#include "src/memory/bus_error.h"
#include "src/memory/memory_image.h"
#include "src/memory/memory_merge.h"
#include "src/memory/userfault.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kFirstPages = 40000;
constexpr std::uint64_t kPages = 65536;  // 256 MiB
/// Pages that are in the file: those of memory are these, one behind the other.
constexpr std::uint64_t kPlaces = 96;
/// Zero pages in memory, few and many together.
constexpr std::array<std::uint64_t, 4> kZeros = {100, 101, 102, kFirstPages + 7};
constexpr std::uint64_t kHole = 50000;
constexpr std::uint64_t kHolePages = 3000;

bool is_zero(std::uint64_t page) {
  return std::ranges::find(kZeros, page) != kZeros.end() ||
         (page >= kHole && page < kHole + kHolePages);
}

std::uint64_t word_of(std::uint64_t page) {
  return is_zero(page) ? 0 : 0x1000 + page % kPlaces;
}

struct Setup {
  explicit Setup(bool compressed) {
    const std::array ranges = {*GuestRange::create(GuestAddress(0), kFirstPages * kImagePage),
                               *GuestRange::create(GuestAddress(std::uint64_t{4} << 30),
                                                   (kPages - kFirstPages) * kImagePage)};
    memory = std::move(*GuestMemory::create(ranges, {}));
    MemoryLayer layer = {.file = file.get()};
    std::vector<std::byte> bytes(kImagePage);
    for (std::uint64_t place = 0; place < kPlaces; ++place) {
      const std::uint64_t word = 0x1000 + place;
      for (std::size_t at = 0; at < bytes.size(); at += sizeof(word)) {
        std::memcpy(&bytes[at], &word, sizeof(word));
      }
      REQUIRE(::pwrite(file.get(), bytes.data(), bytes.size(),
                       static_cast<off_t>(place * kImagePage)) > 0);
      layer.checksums.push_back(checksum(bytes));
    }
    for (std::uint64_t page = 0; page < kPages; ++page) {
      add_run(layer.runs, {.kind = is_zero(page) ? PageKind::kZero : PageKind::kData,
                           .count = 1,
                           .position = is_zero(page) ? 0 : page % kPlaces});
    }
    if (compressed) {
      const MergedMemory all = {
          .runs = layer.runs, .sources = {{.count = kPlaces}}, .places = kPlaces};
      packed = UniqueFd(::memfd_create("packed", MFD_CLOEXEC));
      auto written =
          write_compressed(all, std::span(&layer, 1), packed.get(), 0, [](std::uint64_t) {});
      REQUIRE(written);
      layer.frames = std::move(written->frames);
      layer.file = packed.get();
    }
    std::string way;
    auto userfaultfd = open_userfaultfd(way);
    REQUIRE(userfaultfd);  // this user is root, or has been given the device
    auto made = PageFeeder::create(std::move(*userfaultfd), *memory, std::move(layer), UniqueFd(),
                                   "the file");
    REQUIRE(made);
    feeder = std::move(*made);
  }

  std::span<std::byte> host(std::uint64_t page) const {
    const bool first = page < kFirstPages;
    return memory->regions()[first ? 0 : 1].host.subspan(
        (first ? page : page - kFirstPages) * kImagePage, kImagePage);
  }
  bool holds(std::uint64_t page) const {
    const std::uint64_t wanted = word_of(page);
    const std::span<std::byte> bytes = host(page);
    return std::memcmp(bytes.data(), &wanted, sizeof(wanted)) == 0 &&
           std::memcmp(&bytes[kImagePage - 8], &wanted, sizeof(wanted)) == 0;
  }
  bool present(std::uint64_t page) const {
    unsigned char flags = 0;
    REQUIRE(::mincore(host(page).data(), kImagePage, &flags) == 0);
    return (flags & 1U) != 0;
  }
  void check_all() const {
    std::uint64_t wrong = 0;
    for (std::uint64_t page = 0; page < kPages; ++page) {
      wrong += holds(page) ? 0U : 1U;
    }
    CHECK(wrong == 0);
  }

  UniqueFd file{::memfd_create("layer", MFD_CLOEXEC)};
  UniqueFd packed;
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<PageFeeder> feeder;
};

bool may_watch() {
  std::string way;
  return open_userfaultfd(way).has_value();
}

TEST_CASE("page feeder: all of memory comes, and then it is told") {
  if (!may_watch()) {
    return;
  }
  for (const bool compressed : {false, true}) {
    const Setup setup(compressed);
    CHECK_FALSE(setup.present(0));
    std::atomic<bool> done = false;
    REQUIRE(setup.feeder->start({}, [&] {
      done = true;
      done.notify_all();
    }));
    done.wait(false);
    setup.feeder->stop();
    for (const std::uint64_t page : {std::uint64_t{0}, std::uint64_t{99}, kPages - 1}) {
      CHECK(setup.present(page));
    }
    CHECK_FALSE(setup.present(kHole + kHolePages / 2));
    setup.check_all();
  }
}

TEST_CASE("page feeder: what is touched comes before what is not") {
  if (!may_watch()) {
    return;
  }
  bool seen = false;
  for (int tries = 0; tries < 20 && !seen; ++tries) {
    const Setup setup(tries % 2 == 0);
    REQUIRE(setup.feeder->start({}, {}));
    CHECK(setup.holds(kPages - 1));
    seen = !setup.present(kPages - 100 * kPlaces);
    CHECK(setup.holds(kZeros[3]));
    CHECK(setup.holds(kHole));
    setup.check_all();
  }
  CHECK(seen);
}

TEST_CASE("page feeder: threads and the kernel's own accesses get the same pages") {
  if (!may_watch()) {
    return;
  }
  const Setup setup(true);
  REQUIRE(setup.feeder->start({}, {}));
  std::atomic<std::uint64_t> wrong = 0;
  std::vector<std::thread> threads;
  for (std::uint64_t number = 0; number < 4; ++number) {
    threads.emplace_back([&, number] {
      std::array<int, 2> ends = {};
      if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
        ++wrong;
      }
      std::vector<std::byte> bytes(kImagePage);
      // From the end, and all the same pages at about the same time.
      for (std::uint64_t page = kPages - 1; page > 64; page -= 61) {
        const std::uint64_t wanted = word_of(page);
        if (number % 2 == 0) {
          wrong += setup.holds(page) ? 0 : 1;
        } else if (::write(ends[1], setup.host(page).data(), kImagePage) != kImagePage ||
                   ::read(ends[0], bytes.data(), kImagePage) != kImagePage ||
                   std::memcmp(&bytes[8], &wanted, sizeof(wanted)) != 0) {
          ++wrong;
        }
      }
      ::close(ends[0]);
      ::close(ends[1]);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(wrong == 0);
}

TEST_CASE("page feeder: stopped and started, what was written in between stays") {
  if (!may_watch()) {
    return;
  }
  const Setup setup(true);
  constexpr std::uint64_t kWritten = kPages - 5;
  REQUIRE(setup.feeder->start({}, {}));
  std::memset(setup.host(kWritten).data(), 0x5a, kImagePage);
  std::memset(setup.host(kZeros[0]).data(), 0x5b, kImagePage);
  setup.feeder->stop();
  setup.feeder->stop();
  CHECK(setup.host(kWritten)[77] == std::byte{0x5a});
  std::atomic<bool> done = false;
  REQUIRE(setup.feeder->start({}, [&] {
    done = true;
    done.notify_all();
  }));
  done.wait(false);
  CHECK(setup.host(kWritten)[77] == std::byte{0x5a});
  CHECK(setup.host(kZeros[0])[77] == std::byte{0x5b});
  CHECK(setup.holds(kWritten - 1));
  const Result<> refused = [&] {
    setup.feeder->stop();
    return setup.feeder->start([] { return Result<>(fail_errno(EPERM, "beginning")); }, {});
  }();
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message().starts_with("beginning"));
}

TEST_CASE("page feeder: what is still to come may hold something, and is cleared with the rest") {
  if (!may_watch()) {
    return;
  }
  Setup setup(true);
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  REQUIRE(pagemap);
  PageSet pages(kPages);
  setup.memory->add_populated(pagemap.get(), pages);
  for (std::uint64_t page = 0; page < kPages; page += 7) {
    REQUIRE((is_zero(page) || pages.contains(page)));
  }
  CHECK_FALSE(pages.contains(kHole + 1000));
  REQUIRE(setup.feeder->start({}, {}));
  CHECK(setup.holds(kPages - 1));
  setup.feeder.reset();
  REQUIRE(setup.memory->clear());
  CHECK(setup.memory->resident_pages() == 0);
  std::uint64_t wrong = 0;
  for (std::uint64_t page = 0; page < kPages; page += 3) {
    wrong += setup.host(page)[0] == std::byte{0} ? 0U : 1U;
  }
  CHECK(wrong == 0);
}

/// How a child ends that runs `body`, and what it says.
int in_child(std::string& output, const std::function<void()>& body) {
  std::array<int, 2> ends = {};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    body();
    ::_exit(0);
  }
  ::close(ends[1]);
  std::array<char, 512> buffer = {};
  for (ssize_t count = 0; (count = ::read(ends[0], buffer.data(), buffer.size())) > 0;) {
    output.append(buffer.data(), static_cast<std::size_t>(count));
  }
  ::close(ends[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

TEST_CASE("page feeder: a damaged page ends the process with the file's name, whoever waits") {
  if (!may_watch()) {
    return;
  }
  for (const bool compressed : {false, true}) {
    std::string output;
    const int status = in_child(output, [&] {
      const Setup setup(compressed);
      const int file = compressed ? setup.packed.get() : setup.file.get();
      const std::byte other{0x77};
      if (!watch_bus_errors(*setup.memory, "", nullptr) ||
          ::pwrite(file, &other, 1, compressed ? 30 : 40 * kImagePage) != 1 ||
          !setup.feeder->start({}, {})) {
        ::_exit(1);
      }
      setup.check_all();
      ::_exit(2);
    });
    INFO(output);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 65);
    CHECK(output.starts_with("vireo: the file: "));
    CHECK(output.find("is damaged") != std::string::npos);
    CHECK(output.find('\n') == output.size() - 1);
  }
}

TEST_CASE("page feeder: blocks that are half data or more are worth a huge page") {
  const std::array ranges = {
      *GuestRange::create(GuestAddress(0), 5 * kHugePage),
      *GuestRange::create(GuestAddress(std::uint64_t{4} << 30), 3 * kHugePage)};
  const auto memory = std::move(*GuestMemory::create(ranges, {}));
  const auto blocks = [&](std::vector<LayerPiece> pieces) {
    std::vector<std::pair<std::size_t, std::size_t>> found;  // first block, of how many
    for (const std::span<std::byte> run : dense_blocks(*memory, pieces)) {
      const std::span<std::byte> first = memory->regions()[0].host;
      const bool lies_in_first =
          run.data() >= first.data() && run.data() < first.data() + first.size();
      const std::byte* const start =
          lies_in_first ? first.data() : memory->regions()[1].host.data();
      found.emplace_back(
          (lies_in_first ? 0 : 5) + static_cast<std::size_t>(run.data() - start) / kHugePage,
          run.size() / kHugePage);
    }
    return found;
  };
  using Found = std::vector<std::pair<std::size_t, std::size_t>>;
  CHECK(blocks({}) == Found{});
  CHECK(blocks({{.page = 0, .count = 255}}) == Found{});
  CHECK(blocks({{.page = 100, .count = 256}}) == Found{{0, 1}});
  CHECK(blocks({{.page = 400, .count = 112 + 512 + 256}}) == Found{{1, 2}});
  CHECK(blocks({{.page = 512, .count = 128},
                {.page = 800, .count = 128},
                {.page = 2560, .count = 300}}) == Found{{1, 1}, {5, 1}});
  CHECK(blocks({{.page = 2048, .count = 2048}}) == Found{{4, 1}, {5, 3}});
}

}  // namespace
}  // namespace vireo
