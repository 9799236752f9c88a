// SPDX-License-Identifier: Apache-2.0
// "id=data,path=a,,b,readonly": how a table of the configuration is said in one argument.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vireo {

struct OptionWord {
  std::string key;
  std::optional<std::string> value;  ///< none: a flag
};

/// The words of such a text: two commas are one that belongs to the word.
std::vector<OptionWord> split_option_words(std::string_view text);

}  // namespace vireo
