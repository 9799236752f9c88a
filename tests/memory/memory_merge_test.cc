// SPDX-License-Identifier: Apache-2.0
#include "src/memory/memory_merge.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "tests/support/catch.h"

namespace vireo {
namespace {

struct Page {
  PageKind kind = PageKind::kAbsent;
  std::size_t layer = 0;
  std::uint64_t place = 0;
  bool operator==(const Page&) const = default;
};

/// Page by page what the runs of `layers` say together.
std::vector<Page> expected(std::span<const MemoryLayer> layers, std::uint64_t pages) {
  std::vector<Page> all(pages);
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    std::uint64_t page = 0;
    for (const PageRun& run : layers[layer].runs) {
      for (std::uint32_t i = 0; i < run.count; ++i, ++page) {
        if (run.kind == PageKind::kZero) {
          all[page] = {.kind = PageKind::kZero};
        } else if (run.kind == PageKind::kData) {
          all[page] = {.kind = PageKind::kData, .layer = layer, .place = run.position + i};
        }
      }
    }
  }
  return all;
}

/// The same of what is to be written.
std::vector<Page> planned(const MergedMemory& merged) {
  std::vector<Page> places(merged.places);
  for (const MergedMemory::Source& source : merged.sources) {
    for (std::uint64_t i = 0; i < source.count; ++i) {
      places.at(source.merged_place + i) = {
          .kind = PageKind::kData, .layer = source.layer, .place = source.place + i};
    }
  }
  std::vector<Page> all;
  for (const PageRun& run : merged.runs) {
    for (std::uint32_t i = 0; i < run.count; ++i) {
      all.push_back(run.kind == PageKind::kData ? places.at(run.position + i)
                                                : Page{.kind = run.kind});
    }
  }
  return all;
}

TEST_CASE("memory merge: each page is as the last layer has it that has it") {
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    const std::uint64_t pages = 1 + random() % 5000;
    std::vector<std::vector<PageRun>> runs(1 + random() % 5);
    std::vector<MemoryLayer> layers;
    for (std::vector<PageRun>& of_layer : runs) {
      std::uint64_t place = 0;
      for (std::uint64_t left = pages; left > 0; left -= of_layer.back().count) {
        const auto kind = static_cast<PageKind>(random() % 3);
        const std::uint64_t count =
            1 + random() % (random() % 2 == 0 ? left : std::min<std::uint64_t>(left, 9));
        of_layer.push_back({.kind = kind,
                            .count = static_cast<std::uint32_t>(count),
                            .position = kind == PageKind::kData ? place : 0});
        place += kind == PageKind::kData ? count + random() % 2 : 0;
      }
      layers.push_back({.runs = of_layer});
    }
    REQUIRE(planned(plan_merge(layers, pages)) == expected(layers, pages));
  }
}

TEST_CASE("memory merge: few zero pages between data keep their places, many have none") {
  for (const auto& [zeros, places] : {std::pair{511U, 513U}, {512U, 2U}}) {
    const std::vector<PageRun> runs = {{.kind = PageKind::kData, .count = 1, .position = 0},
                                       {.kind = PageKind::kZero, .count = zeros},
                                       {.kind = PageKind::kData, .count = 1, .position = 1},
                                       {.kind = PageKind::kZero, .count = 9}};
    const MemoryLayer layer = {.runs = runs};
    CHECK(plan_merge(std::span(&layer, 1), zeros + 11).places == places);
  }
}

TEST_CASE("memory merge: raw, each page of data has the place of its number") {
  const std::vector<PageRun> below = {{.kind = PageKind::kData, .count = 5, .position = 0},
                                      {.kind = PageKind::kZero, .count = 600},
                                      {.kind = PageKind::kData, .count = 3, .position = 5}};
  const std::vector<PageRun> above = {{.kind = PageKind::kAbsent, .count = 4},
                                      {.kind = PageKind::kData, .count = 2, .position = 0},
                                      {.kind = PageKind::kAbsent, .count = 602}};
  const std::vector<MemoryLayer> layers = {{.runs = below}, {.runs = above}};
  const MergedMemory merged = plan_merge(layers, 608, Places::kRaw);
  CHECK(merged.places == 608);
  for (std::uint64_t page = 0; const PageRun& run : merged.runs) {
    CHECK((run.kind != PageKind::kData || run.position == page));
    page += run.count;
  }
  std::uint64_t pages = 0;
  for (const MergedMemory::Source& source : merged.sources) {
    CHECK(source.merged_place == source.place + (source.layer == 1  ? 4U
                                                 : source.place < 5 ? 0U
                                                                    : 600U));
    pages += source.count;
  }
  CHECK(pages == 9);
}

TEST_CASE("memory merge: more pages than any machine has cost nothing") {
  // 1 PiB, as 128 runs of a file of a few KiB may say.
  const std::uint64_t pages = std::uint64_t{1} << 38;
  const std::vector<PageRun> runs(128, {.kind = PageKind::kZero, .count = 1U << 31U});
  const std::vector<MemoryLayer> layers(2, {.runs = runs});
  const MergedMemory merged = plan_merge(layers, pages);
  CHECK(merged.sources.empty());
  CHECK(merged.places == 0);
  std::uint64_t covered = 0;
  for (const PageRun& run : merged.runs) {
    covered += run.count;
  }
  CHECK(covered == pages);
}

}  // namespace
}  // namespace vireo
