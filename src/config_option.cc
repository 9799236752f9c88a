// SPDX-License-Identifier: Apache-2.0
// Keys as options of the command line set them.
#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "src/config.h"
#include "src/config_keys.h"
#include "src/config_value.h"
#include "src/option_words.h"

namespace vireo {

Result<> set_config_option(Config& config, std::string_view key, std::string_view option,
                           std::string_view text) {
  const ConfigKey* const found = find_config_key(key);
  CHECK(found != nullptr && found->set != nullptr);
  return found->set(
      ConfigValue(ConfigValue::OptionText{text}, std::string(option), ErrorCode::kUsage), config);
}

Result<> set_table_option(Config& config, std::string_view table, std::string_view option,
                          std::string_view text, std::string_view first) {
  std::vector<OptionWord> words = split_option_words(text);
  if (!first.empty() && !words.front().value) {
    words.front().value = std::exchange(words.front().key, first);
  }
  std::string label(option);
  const ConfigKey* const tables = find_config_key(table);
  if (tables != nullptr && tables->kind == ConfigKey::Kind::kTables) {
    TRY(tables->set(ConfigValue(ConfigValue::FlagWord(), label, ErrorCode::kUsage), config));
    const auto id = std::ranges::find(words, "id", &OptionWord::key);
    label += id != words.end() && id->value ? " " + quoted(*id->value) : "";
  }
  const std::string prefix = fmt::format("{}.", table);
  for (auto word = words.begin(); word != words.end(); ++word) {
    const std::string path = prefix + word->key;
    const ConfigKey* const key = find_config_key(path);
    if (key == nullptr) {
      return fail(ErrorCode::kUsage, fmt::format("{}: {}", label, unknown_key(path, prefix)));
    }
    const std::string where = fmt::format("{}: {}", label, word->key);
    if (key->set == nullptr) {
      return fail(ErrorCode::kUsage, where + ": not yet supported; remove it");
    }
    if (std::ranges::find(words.begin(), word, word->key, &OptionWord::key) != word) {
      return fail(ErrorCode::kUsage, where + ": given twice; wants to be given once");
    }
    ConfigValue::Content content = ConfigValue::FlagWord();
    if (word->value) {
      content = ConfigValue::OptionText{*word->value};
    }
    TRY(key->set(ConfigValue(std::move(content), where, ErrorCode::kUsage), config));
  }
  return {};
}

}  // namespace vireo
