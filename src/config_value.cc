// SPDX-License-Identifier: Apache-2.0
#include "src/config_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <memory>
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

/// How many bytes a UTF-8 sequence has that begins with `lead`; 0: none does (RFC 3629).
std::size_t sequence_length(unsigned char lead) {
  if (lead < 0x80) {
    return 1;
  }
  if (lead < 0xc2 || lead > 0xf4) {
    return 0;
  }
  return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

bool is_utf8(std::string_view text) {
  constexpr std::array<std::uint32_t, 5> kLowest = {0, 0, 0x80, 0x800, 0x10000};
  while (!text.empty()) {
    const auto lead = static_cast<unsigned char>(text.front());
    const std::size_t length = sequence_length(lead);
    if (length == 0 || length > text.size()) {
      return false;
    }
    std::uint32_t value = lead & (length == 1 ? 0x7fU : 0x7fU >> length);
    for (const char c : text.substr(1, length - 1)) {
      const auto byte = static_cast<unsigned char>(c);
      if ((byte & 0xc0U) != 0x80) {
        return false;
      }
      value = value << 6 | (byte & 0x3fU);
    }
    const bool surrogate = value >= 0xd800 && value < 0xe000;
    if (value < kLowest.at(length) || value > 0x10ffff || surrogate) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace

std::string printable(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    line += byte < ' ' || byte == 0x7f ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
  }
  return line;
}

std::string quoted(std::string_view text) {
  constexpr std::size_t kEnd = 60;
  if (text.size() <= 2 * kEnd) {
    return "\"" + printable(text) + "\"";
  }
  return "\"" + printable(text.substr(0, kEnd)) + " ... " +
         printable(text.substr(text.size() - kEnd)) + "\"";
}

bool is_label(std::string_view text, std::size_t longest) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !text.empty() && text.size() <= longest && text[0] != '.' && text[0] != '-' &&
         std::ranges::all_of(text, allowed);
}

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
    return wrong(is_flag_word() ? "wants a value behind a =" : "wants text in quotes");
  }
  if (has_nul(text)) {
    return wrong("holds a NUL byte");
  }
  if (!is_utf8(text)) {
    // A file cannot hold such text, and `check` could not print it.
    return wrong("wants text in UTF-8");
  }
  return text;
}

Result<bool> ConfigValue::boolean() const {
  if (is_flag_word()) {
    return true;
  }
  if (const auto* const typed = std::get_if<bool>(&content_)) {
    return *typed;
  }
  const auto* const option = std::get_if<OptionText>(&content_);
  if (option != nullptr) {
    if (option->text == "on" || option->text == "true") {
      return true;
    }
    if (option->text == "off" || option->text == "false") {
      return false;
    }
    return wrong(fmt::format("{} is not one of on, off", quoted(option->text)));
  }
  return wrong("wants true or false");
}

Result<std::int64_t> ConfigValue::integer(std::int64_t low, std::int64_t high) const {
  const std::string range = fmt::format("wants a whole number from {} to {}", low, high);
  std::int64_t number = 0;
  if (const auto* const typed = std::get_if<std::int64_t>(&content_)) {
    number = *typed;
  } else if (const auto* const option = std::get_if<OptionText>(&content_)) {
    const char* const first = std::to_address(option->text.begin());
    const char* const last = first + option->text.size();
    const auto [end, error] = std::from_chars(first, last, number);
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
    return wrong(fmt::format("{}: {}", quoted(text), kHint));
  }
  return *bytes;
}

Result<std::uint64_t> ConfigValue::duration() const {
  constexpr std::string_view kHint = "wants a duration with its unit, such as \"250ms\" or \"30s\"";
  if (!std::holds_alternative<std::string>(content_) &&
      !std::holds_alternative<OptionText>(content_)) {
    return wrong(kHint);
  }
  TRY_ASSIGN(const std::string text, string());
  const std::optional<std::uint64_t> ns = parse_duration(text);
  if (!ns) {
    return wrong(fmt::format("{}: {}", quoted(text), kHint));
  }
  return *ns;
}

Result<std::string> ConfigValue::path() const {
  TRY_ASSIGN(std::string text, string());
  if (text.empty()) {
    return wrong("wants a path");
  }
  if (const std::string_view why = wrong_fd_path(text); !why.empty()) {
    return wrong(fmt::format("{}: {}", quoted(text), why));
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
  return wrong(fmt::format("{} is not one of {}", quoted(text), list));
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

Result<ConfigValue::Texts> ConfigValue::text_or_texts() const {
  if (std::holds_alternative<std::string>(content_) ||
      std::holds_alternative<OptionText>(content_)) {
    TRY_ASSIGN(std::string text, string());
    return Texts{std::move(text)};
  }
  return texts();
}

Result<ConfigValue::TextTable> ConfigValue::text_table() const {
  const auto* const table = std::get_if<TextTable>(&content_);
  if (table == nullptr) {
    return wrong("wants a table of texts");
  }
  return *table;
}

}  // namespace vireo
