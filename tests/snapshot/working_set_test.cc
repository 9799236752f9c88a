// SPDX-License-Identifier: Apache-2.0
// Working sets: what is written is what is read, and nothing else is read.
#include "src/snapshot/working_set.h"

#include <cstring>
#include <string>

#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kPages = 1000;

WorkingSet sample() {
  return {.snapshot = {1, 2, 3}, .runs = {{.first = 0, .count = 3}, {.first = 998, .count = 2}}};
}

Result<WorkingSet> decode(const std::string& text) {
  return decode_working_set(std::as_bytes(std::span(text)), kPages);
}

TEST_CASE("working set: what is written is what is read") {
  const Result<WorkingSet> set = decode(encode_working_set(sample()));
  REQUIRE(set.has_value());
  CHECK(set->snapshot == sample().snapshot);
  CHECK(set->runs == sample().runs);
  CHECK(decode(encode_working_set({})).value().runs.empty());
}

TEST_CASE("working set: each byte counts") {
  const std::string whole = encode_working_set(sample());
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CHECK_FALSE(decode(whole.substr(0, size)).has_value());
  }
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    const bool of_another = at >= 8 && at < 24;
    CHECK(decode(damaged).has_value() == of_another);
  }
}

TEST_CASE("working set: pages that are not there, or not in their order") {
  for (const std::vector<WorkingSetRun>& runs : std::vector<std::vector<WorkingSetRun>>{
           {{.first = 1000, .count = 1}},
           {{.first = 999, .count = 2}},
           {{.first = 0, .count = 0}},
           {{.first = 1, .count = ~std::uint64_t{0}}},
           {{.first = ~std::uint64_t{0}, .count = 2}},
           {{.first = 5, .count = 5}, {.first = 9, .count = 1}},
           {{.first = 5, .count = 1}, {.first = 0, .count = 1}}}) {
    const Result<WorkingSet> set = decode(encode_working_set({.snapshot = {}, .runs = runs}));
    REQUIRE_FALSE(set.has_value());
    CHECK(set.error().message().find("pages that the snapshot has not") != std::string::npos);
  }
}

}  // namespace
}  // namespace vireo
