// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/text_matcher.h"

namespace vireo {

TextMatcher::TextMatcher(std::string_view text) : text_(text), fallback_(text.size() + 1, 0) {
  std::size_t length = 0;
  for (std::size_t i = 1; i < text_.size(); ++i) {
    while (length > 0 && text_[i] != text_[length]) {
      length = fallback_[length];
    }
    if (text_[i] == text_[length]) {
      ++length;
    }
    fallback_[i + 1] = length;
  }
}

bool TextMatcher::feed(char byte) {
  while (matched_ > 0 && text_[matched_] != byte) {
    matched_ = fallback_[matched_];
  }
  if (text_[matched_] == byte) {
    ++matched_;
  }
  if (matched_ < text_.size()) {
    return false;
  }
  matched_ = fallback_[matched_];
  return true;
}

}  // namespace vireo
