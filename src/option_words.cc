// SPDX-License-Identifier: Apache-2.0
#include "src/option_words.h"

#include <cstddef>

namespace vireo {

std::vector<OptionWord> split_option_words(std::string_view text) {
  std::vector<std::string> words(1);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ',' && !text.substr(i + 1).starts_with(',')) {
      words.emplace_back();
      continue;
    }
    words.back() += text[i];
    if (text[i] == ',') {
      ++i;
    }
  }
  std::vector<OptionWord> split;
  for (const std::string& word : words) {
    const std::size_t equals = word.find('=');
    split.push_back({.key = word.substr(0, equals), .value = std::nullopt});
    if (equals != std::string::npos) {
      split.back().value = word.substr(equals + 1);
    }
  }
  return split;
}

}  // namespace vireo
