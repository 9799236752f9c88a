// SPDX-License-Identifier: Apache-2.0
// Finds a text in a stream of bytes, one byte at a time (Knuth, Morris and Pratt): constant memory,
// no byte looked at twice.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace vireo {

class TextMatcher {
 public:
  /// `text` is not empty.
  explicit TextMatcher(std::string_view text);

  /// True where `byte` completes the text.
  bool feed(char byte);

 private:
  std::string text_;
  std::vector<std::size_t> fallback_;  // for each prefix: its longest proper suffix that is one too
  std::size_t matched_ = 0;
};

}  // namespace vireo
