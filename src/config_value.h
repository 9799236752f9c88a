// SPDX-License-Identifier: Apache-2.0
// One value on its way into the configuration: of a file, where it has a type, or an option's bare
// text. Both are read through the same calls, so that both refuse the same things with the same
// words; each error names the place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "src/base/error.h"

namespace vireo {

/// `text` as it can stand in a message of one line: control characters escaped.
std::string printable(std::string_view text);
/// The same in quotation marks, the middle of what is too long left out.
std::string quoted(std::string_view text);
/// Whether `text` is 1 to `longest` of A-Z a-z 0-9 . _ -, beginning with neither . nor -.
bool is_label(std::string_view text, std::size_t longest);

class ConfigValue {
 public:
  struct OptionText {
    std::string_view text;
  };
  /// A word of a device option that has no value: a flag that is set.
  struct FlagWord {};
  using Texts = std::vector<std::string>;
  using TextTable = std::map<std::string, std::string>;
  /// What no key takes: numbers with a point, dates, mixed lists.
  struct Other {};
  using Content =
      std::variant<OptionText, FlagWord, std::string, bool, std::int64_t, Texts, TextTable, Other>;

  /// `where` begins each error: "vm.toml:3: machine.cpus", or the option's name.
  ConfigValue(Content content, std::string where, ErrorCode code);

  /// An error that names the place.
  std::unexpected<Error> wrong(std::string_view what) const;

  /// Text in UTF-8 without NUL bytes.
  Result<std::string> string() const;
  /// true or false; as an option also on and off.
  Result<bool> boolean() const;
  Result<std::int64_t> integer(std::int64_t low, std::int64_t high) const;
  /// "512M" in bytes.
  Result<std::uint64_t> size() const;
  /// "250ms" in nanoseconds.
  Result<std::uint64_t> duration() const;
  /// A path, or an inherited descriptor (src/base/fd_path.h); never empty.
  Result<std::string> path() const;
  /// One of a few words; the index of the word.
  Result<std::size_t> word(std::initializer_list<std::string_view> words) const;
  Result<Texts> texts() const;
  /// A list, or one text as a list of one.
  Result<Texts> text_or_texts() const;
  Result<TextTable> text_table() const;

 private:
  bool is_flag_word() const { return std::holds_alternative<FlagWord>(content_); }

  Content content_;
  std::string where_;
  ErrorCode code_;
};

}  // namespace vireo
