// SPDX-License-Identifier: Apache-2.0
#include "src/memory/page_set.h"

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "tests/support/catch.h"

namespace vireo {
namespace {

using Pages = std::set<std::uint64_t>;

std::vector<std::uint64_t> visited(const PageSet& pages, std::uint64_t first, std::uint64_t count) {
  std::vector<std::uint64_t> all;
  pages.for_each(first, count, [&all](std::uint64_t page) { all.push_back(page); });
  return all;
}

std::vector<std::uint64_t> within(const Pages& model, std::uint64_t first, std::uint64_t count) {
  return {model.lower_bound(first), model.lower_bound(first + count)};
}

/// Does one thing of its own choice to both.
void change(std::mt19937_64& random, PageSet& pages, Pages& model) {
  const std::uint64_t first = random() % pages.pages();
  const std::uint64_t count = random() % (pages.pages() - first + 1);
  switch (random() % 8) {
    case 0:
      pages.add_range(first, count);
      for (std::uint64_t page = first; page < first + count; ++page) {
        model.insert(page);
      }
      break;
    case 1: {
      PageSet others(pages.pages());
      others.add(first);
      others.add_range(first, count / 8);
      pages.add_all_of(others);
      model.insert(first);
      for (std::uint64_t page = first; page < first + count / 8; ++page) {
        model.insert(page);
      }
      break;
    }
    case 2:
      pages.clear();
      model.clear();
      break;
    default:
      pages.add(first);
      model.insert(first);
  }
}

TEST_CASE("page set: does what a set of numbers does") {
  std::mt19937_64 random(1);
  for (const std::uint64_t size : {1U, 63U, 64U, 65U, 127U, 128U, 500U, 4099U}) {
    PageSet pages(size);
    Pages model;
    CHECK(pages.pages() == size);
    for (int step = 0; step < 300; ++step) {
      change(random, pages, model);
      INFO("of " << size << " in step " << step);
      REQUIRE(pages.count() == model.size());
      REQUIRE(std::ranges::equal(visited(pages, 0, size), model));
      const std::uint64_t first = random() % size;
      const std::uint64_t count = random() % (size - first + 1);
      REQUIRE(visited(pages, first, count) == within(model, first, count));
      REQUIRE(pages.contains(first) == model.contains(first));
    }
  }
}

TEST_CASE("page set: a range is these pages, wherever it begins and ends") {
  for (std::uint64_t first = 0; first < 130; ++first) {
    for (std::uint64_t count = 0; first + count <= 200; ++count) {
      PageSet pages(200);
      pages.add_range(first, count);
      REQUIRE(pages.count() == count);
      REQUIRE((count == 0 || (pages.contains(first) && pages.contains(first + count - 1))));
    }
  }
}

TEST_CASE("page set: words are those of KVM's dirty log") {
  PageSet pages(130);
  pages.add(0);
  pages.add(65);
  REQUIRE(pages.words().size() == 3);
  CHECK(pages.words()[0] == 1);
  CHECK(pages.words()[1] == 2);
  pages.words()[2] = 2;
  CHECK(pages.contains(129));
  CHECK(visited(pages, 1, 129) == std::vector<std::uint64_t>{65, 129});
}

}  // namespace
}  // namespace vireo
