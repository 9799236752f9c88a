// SPDX-License-Identifier: Apache-2.0
#include "src/memory/page_table.h"

#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <string>

#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();

/// A run as bytes, whatever it says.
std::vector<std::byte> wire(std::uint32_t kind, std::uint32_t count, std::uint64_t position) {
  std::vector<std::byte> bytes =
      encode_page_table(std::array{PageRun{.count = count, .position = position}});
  for (unsigned i = 0; i < 4; ++i) {
    bytes[i] = static_cast<std::byte>(kind >> (8 * i) & 0xffU);
  }
  return bytes;
}

std::string problem_of(std::span<const std::byte> bytes, std::uint64_t pages,
                       std::uint64_t places) {
  const Result<std::vector<PageRun>> runs = decode_page_table(bytes, pages, places);
  REQUIRE_FALSE(runs);
  CHECK(runs.error().code() == ErrorCode::kBadInput);
  CHECK(runs.error().message().starts_with("page table: "));
  return runs.error().message().substr(12);
}

TEST_CASE("page table: 16 bytes for each run, little-endian") {
  const std::vector<std::byte> bytes = encode_page_table(
      std::array{PageRun{.kind = PageKind::kData, .count = 0x04030201, .position = 0x18}});
  std::vector<std::byte> wanted(16);
  wanted[0] = std::byte{2};
  for (unsigned i = 0; i < 4; ++i) {
    wanted[4 + i] = static_cast<std::byte>(i + 1);
  }
  wanted[8] = std::byte{0x18};
  CHECK(bytes == wanted);
}

TEST_CASE("page table: what was written is read") {
  std::mt19937_64 random(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<PageRun> runs;
    std::uint64_t pages = 0;
    std::uint64_t places = 0;
    for (std::uint64_t i = random() % 20; i > 0; --i) {
      const auto kind = static_cast<PageKind>(random() % 3);
      const auto count = random() % 9 == 0 ? kMost : static_cast<std::uint32_t>(1 + random() % 999);
      const std::uint64_t position = kind == PageKind::kData ? random() >> 2 : 0;
      runs.push_back({.kind = kind, .count = count, .position = position});
      pages += count;
      places = kind == PageKind::kData ? std::max(places, position + count) : places;
    }
    const std::vector<std::byte> bytes = encode_page_table(runs);
    const Result<std::vector<PageRun>> read = decode_page_table(bytes, pages, places);
    REQUIRE(read);
    REQUIRE(*read == runs);
    if (!runs.empty()) {
      REQUIRE_FALSE(decode_page_table(bytes, pages + 1, places));
      REQUIRE_FALSE(decode_page_table(bytes, pages - 1, places));
      REQUIRE((places == 0 || !decode_page_table(bytes, pages, places - 1)));
      REQUIRE_FALSE(decode_page_table(std::span(bytes).first(bytes.size() - 1), pages, places));
    }
  }
}

TEST_CASE("page table: runs that say nothing are refused, each by its number") {
  CHECK(problem_of(wire(3, 5, 0), 5, 5) == "run 0 is of kind 3");
  CHECK(problem_of(wire(0x80000002, 5, 0), 5, 5) == "run 0 is of kind 2147483650");
  CHECK(problem_of(wire(1, 0, 0), 5, 5) == "run 0 has 0 pages, where 5 are left");
  CHECK(problem_of(wire(1, 6, 0), 5, 5) == "run 0 has 6 pages, where 5 are left");
  CHECK(problem_of(wire(1, 5, 1), 5, 9) == "run 0 has 5 pages at place 1 of 9");
  CHECK(problem_of(wire(0, 5, 1), 5, 9) == "run 0 has 5 pages at place 1 of 9");
  CHECK(problem_of(wire(2, 5, 1), 5, 5) == "run 0 has 5 pages at place 1 of 5");
  CHECK(problem_of(wire(2, 5, 6), 5, 5) == "run 0 has 5 pages at place 6 of 5");
  // 5 pages from here on end at place 2, or so 64 bits have it.
  CHECK(problem_of(wire(2, 5, ~std::uint64_t{2}), 5, 5) ==
        "run 0 has 5 pages at place 18446744073709551613 of 5");
  CHECK(problem_of(wire(1, 4, 0), 5, 5) == "has 4 pages of 5");
  CHECK(problem_of({}, 5, 5) == "has 0 pages of 5");
  CHECK(problem_of(std::vector<std::byte>(17), 1, 1) == "has 17 bytes");

  std::vector<std::byte> two = wire(1, 3, 0);
  two.resize(2 * two.size());
  std::ranges::copy(wire(1, 3, 0), two.begin() + 16);
  CHECK(problem_of(two, 5, 5) == "run 1 has 3 pages, where 2 are left");
  // Each within its places, and one more than there are.
  std::ranges::copy(wire(2, 3, 2), two.begin());
  std::ranges::copy(wire(2, 3, 0), two.begin() + 16);
  CHECK(problem_of(two, 6, 5) == "has 6 pages of data at 5 places");
}

TEST_CASE("page table: pages are added to the last run where they go on with it") {
  std::vector<PageRun> runs;
  const auto add = [&runs](PageKind kind, std::uint64_t position) {
    add_run(runs, {.kind = kind, .count = 1, .position = position});
    return runs.size();
  };
  CHECK(add(PageKind::kZero, 0) == 1);
  CHECK(add(PageKind::kZero, 0) == 1);
  CHECK(add(PageKind::kData, 0) == 2);
  CHECK(add(PageKind::kData, 1) == 2);
  CHECK(add(PageKind::kData, 1) == 3);
  CHECK(add(PageKind::kData, 0) == 4);
  CHECK(add(PageKind::kAbsent, 0) == 5);
  CHECK(add(PageKind::kZero, 0) == 6);
  CHECK(runs[1] == PageRun{.kind = PageKind::kData, .count = 2, .position = 0});
  runs.back().count = kMost;
  CHECK(add(PageKind::kZero, 0) == 7);  // a run's count has 32 bits
  CHECK(runs.back().count == 1);
  add_run(runs, {.kind = PageKind::kData, .count = kMost - 1, .position = 7});
  add_run(runs, {.kind = PageKind::kData, .count = 5, .position = 6 + std::uint64_t{kMost}});
  CHECK(runs[7] == PageRun{.kind = PageKind::kData, .count = kMost, .position = 7});
  CHECK(runs[8] ==
        PageRun{.kind = PageKind::kData, .count = 4, .position = 7 + std::uint64_t{kMost}});
}

}  // namespace
}  // namespace vireo
