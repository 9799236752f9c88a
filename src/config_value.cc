// SPDX-License-Identifier: Apache-2.0
#include "src/config_value.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include <fmt/core.h>

#include "src/base/fd_path.h"
#include "src/config.h"

namespace vireo {

namespace {

bool has_nul(std::string_view text) {
  return text.find('\0') != std::string_view::npos;
}

}  // namespace

ConfigValue::ConfigValue(Content content, std::string where, ErrorCode code)
    : content_(std::move(content)), where_(std::move(where)), code_(code) {}

std::unexpected<Error> ConfigValue::wrong(std::string_view what) const {
  return fail(code_, fmt::format("{}: {}", where_, what));
}

Result<std::string> ConfigValue::string() const {
  std::string text;
  if (const auto* const option = std::get_if<OptionText>(&content_)) {
    text = option->text;
  } else if (const auto* const typed = std::get_if<std::string>(&content_)) {
    text = *typed;
  } else {
    return wrong("wants text in quotes");
  }
  if (has_nul(text)) {
    return wrong("holds a NUL byte");
  }
  return text;
}

Result<bool> ConfigValue::boolean() const {
  if (const auto* const typed = std::get_if<bool>(&content_)) {
    return *typed;
  }
  const auto* const option = std::get_if<OptionText>(&content_);
  if (option != nullptr && (option->text == "true" || option->text == "false")) {
    return option->text == "true";
  }
  return wrong("wants true or false");
}

Result<std::int64_t> ConfigValue::integer(std::int64_t low, std::int64_t high) const {
  const std::string range = fmt::format("wants a whole number from {} to {}", low, high);
  std::int64_t number = 0;
  if (const auto* const typed = std::get_if<std::int64_t>(&content_)) {
    number = *typed;
  } else if (const auto* const option = std::get_if<OptionText>(&content_)) {
    const char* const last = option->text.data() + option->text.size();
    const auto [end, error] = std::from_chars(option->text.data(), last, number);
    if (error != std::errc() || end != last) {
      return wrong(range);
    }
  } else {
    return wrong(range);
  }
  if (number < low || number > high) {
    return wrong(fmt::format("{} is out of range: {}", number, range));
  }
  return number;
}

Result<std::uint64_t> ConfigValue::size() const {
  constexpr std::string_view kHint =
      "wants a size with a binary suffix, such as \"512M\" or \"2G\"";
  if (!std::holds_alternative<std::string>(content_) &&
      !std::holds_alternative<OptionText>(content_)) {
    return wrong(kHint);
  }
  TRY_ASSIGN(const std::string text, string());
  const std::optional<std::uint64_t> bytes = parse_size(text);
  if (!bytes) {
    return wrong(fmt::format("\"{}\": {}", text, kHint));
  }
  return *bytes;
}

Result<std::string> ConfigValue::path() const {
  TRY_ASSIGN(std::string text, string());
  if (text.empty()) {
    return wrong("wants a path");
  }
  if (const std::string_view why = wrong_fd_path(text); !why.empty()) {
    return wrong(fmt::format("\"{}\": {}", text, why));
  }
  return text;
}

Result<std::size_t> ConfigValue::word(std::initializer_list<std::string_view> words) const {
  TRY_ASSIGN(const std::string text, string());
  const auto* const found = std::ranges::find(words, text);
  if (found != words.end()) {
    return static_cast<std::size_t>(found - words.begin());
  }
  std::string list;
  for (const std::string_view word : words) {
    list += list.empty() ? "" : ", ";
    list += word;
  }
  return wrong(fmt::format("\"{}\" is not one of {}", text, list));
}

Result<ConfigValue::Texts> ConfigValue::texts() const {
  const auto* const list = std::get_if<Texts>(&content_);
  if (list == nullptr) {
    return wrong("wants a list of texts");
  }
  if (std::ranges::any_of(*list, has_nul)) {
    return wrong("holds a NUL byte");
  }
  return *list;
}

Result<ConfigValue::TextTable> ConfigValue::text_table() const {
  const auto* const table = std::get_if<TextTable>(&content_);
  if (table == nullptr) {
    return wrong("wants a table of texts");
  }
  return *table;
}

}  // namespace vireo
