// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/text_matcher.h"

#include <string>
#include <string_view>
#include <vector>

#include "tests/support/catch.h"

namespace vireo {
namespace {

/// Where in `stream` the text ends, each time.
std::vector<std::size_t> ends(std::string_view text, std::string_view stream) {
  TextMatcher matcher(text);
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < stream.size(); ++i) {
    if (matcher.feed(stream[i])) {
      found.push_back(i + 1);
    }
  }
  return found;
}

TEST_CASE("text matcher: finds a text that begins anew within itself, and overlaps") {
  using Ends = std::vector<std::size_t>;
  CHECK(ends("a", "banana") == Ends{2, 4, 6});
  CHECK(ends("ana", "banana") == Ends{4, 6});
  CHECK(ends("aab", "aaab aab") == Ends{4, 8});
  CHECK(ends("abab", "abababab") == Ends{4, 6, 8});
  CHECK(ends("abacabad", "abacabacabad") == Ends{12});
  CHECK(ends("abc", "ab ac bc").empty());
}

TEST_CASE("text matcher: agrees with a search, for all streams of two letters") {
  for (const std::string text : {"aba", "aab", "abba", "aabaa", "babab"}) {
    for (unsigned bits = 0; bits < 1U << 12U; ++bits) {
      std::string stream;
      for (unsigned i = 0; i < 12; ++i) {
        stream += (bits >> i & 1U) != 0 ? 'b' : 'a';
      }
      std::vector<std::size_t> expected;
      for (std::size_t at = stream.find(text); at != std::string::npos;
           at = stream.find(text, at + 1)) {
        expected.push_back(at + text.size());
      }
      if (ends(text, stream) != expected) {
        FAIL(text << " in " << stream);
      }
    }
  }
}

}  // namespace
}  // namespace vireo
