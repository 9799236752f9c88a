// SPDX-License-Identifier: Apache-2.0
// The configuration file: TOML to keys and values.
#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>

#include <fmt/core.h>

#include "src/base/fd_path.h"
#include "src/config.h"
#include "src/config_keys.h"
#include "src/toml.h"

namespace vireo {

namespace {

constexpr std::uint64_t kFileMax = std::uint64_t{1} << 20;

/// More parts than any key has. toml++ makes a table for each, and ends them by recursion.
constexpr int kKeyPartsMax = 32;

/// Walks over a text as TOML sees it: what is in strings and comments does not count.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  /// The line of the first dotted key that has too many parts.
  std::optional<std::size_t> overlong_key() {
    int dots = 0;
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '"' || c == '\'') {
        skip_string(c);
      } else if (c == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size()) - 1;
      } else if (c == '.') {
        if (++dots >= kKeyPartsMax) {
          return 1 + static_cast<std::size_t>(std::ranges::count(text_.substr(0, at_), '\n'));
        }
      } else if (std::string_view("\n=,[]{}").find(c) != std::string_view::npos) {
        dots = 0;
      }
    }
    return std::nullopt;
  }

 private:
  /// From a string's first quotation mark to its last. One that does not end is an error of the
  /// text, which the parser will tell.
  void skip_string(char mark) {
    const std::array<char, 3> marks = {mark, mark, mark};
    const std::string_view triple(marks.data(), marks.size());
    const bool long_string = text_.substr(at_).starts_with(triple);
    const std::string_view end = long_string ? triple : triple.substr(0, 1);
    for (at_ += end.size(); at_ < text_.size(); ++at_) {
      if (text_.substr(at_).starts_with(end)) {
        at_ += end.size() - 1;
        // One or two marks more belong to a long string: """a"""" ends in a quotation mark.
        for (int more = 0; long_string && more < 2 && text_.substr(at_ + 1).starts_with(mark);
             ++more) {
          ++at_;
        }
        return;
      }
      if (text_[at_] == '\n' && !long_string) {
        return;
      }
      if (mark == '"' && text_[at_] == '\\') {
        ++at_;
      }
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

ConfigValue::Content list_of(const toml::array& array) {
  ConfigValue::Texts texts;
  for (const toml::node& element : array) {
    if (!element.is_string()) {
      return ConfigValue::Other();
    }
    texts.push_back(element.as_string()->get());
  }
  return texts;
}

ConfigValue::Content table_of(const toml::table& table) {
  ConfigValue::TextTable texts;
  for (const auto& [key, node] : table) {
    if (!node.is_string()) {
      return ConfigValue::Other();
    }
    texts.emplace(key.str(), node.as_string()->get());
  }
  return texts;
}

ConfigValue::Content content_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::string:
      return node.as_string()->get();
    case toml::node_type::boolean:
      return node.as_boolean()->get();
    case toml::node_type::integer:
      return node.as_integer()->get();
    case toml::node_type::array:
      return list_of(*node.as_array());
    case toml::node_type::table:
      return table_of(*node.as_table());
    default:
      return ConfigValue::Other();
  }
}

/// Reads the tables of one file.
class FileReader {
 public:
  FileReader(const std::string& file, Config& config) : file_(file), config_(config) {}

  Result<> read_table(const toml::table& table, const std::string& prefix) {
    for (const auto& [key, node] : table) {
      const std::string path = prefix + std::string(key.str());
      TRY(read_node(path, node));
    }
    return {};
  }

 private:
  Result<> read_node(const std::string& path, const toml::node& node) {
    const ConfigKey* const key = find_config_key(path);
    if (key != nullptr && key->set == nullptr) {
      return wrong(node, name_of(path) + ": not yet supported; remove it");
    }
    if (key != nullptr && key->kind == ConfigKey::Kind::kTables) {
      return read_tables(*key, node);
    }
    if (key != nullptr) {
      TRY(set(*key, node));
      if (key->kind != ConfigKey::Kind::kTable) {
        return {};
      }
    }
    if (!is_config_table(path)) {
      return wrong(node, unknown_key(path));
    }
    const auto* const table = node.as_table();
    if (table == nullptr) {
      return wrong(node, name_of(path) + ": wants a table");
    }
    return read_table(*table, path + ".");
  }

  Result<> read_tables(const ConfigKey& key, const toml::node& node) {
    const auto* const array = node.as_array();
    const auto is_table = [](const toml::node& element) { return element.is_table(); };
    if (array == nullptr || !std::ranges::all_of(*array, is_table)) {
      return wrong(node,
                   fmt::format("{}: wants [[{}]] above the keys of each", key.path, key.path));
    }
    tables_ = fmt::format("{}.", key.path);
    for (const toml::node& element : *array) {
      const toml::table& table = *element.as_table();
      const auto* const id = table.get_as<std::string>("id");
      item_ = id == nullptr ? "" : fmt::format("{} {}: ", key.path, quoted(id->get()));
      TRY(set(key, element));
      TRY(read_table(table, tables_));
    }
    item_.clear();
    return {};
  }

  Result<> set(const ConfigKey& key, const toml::node& node) {
    const std::string where = fmt::format("{}: {}", place(node), name_of(std::string(key.path)));
    return key.set(ConfigValue(content_of(node), where, ErrorCode::kConfig), config_);
  }

  /// What the reader knows a key by: within one of several tables, that table's id tells it from
  /// the others.
  std::string name_of(const std::string& path) const {
    return item_.empty() || path == tables_ + "id" || !path.starts_with(tables_)
               ? path
               : item_ + path.substr(tables_.size());
  }

  std::string place(const toml::node& node) const {
    return fmt::format("{}:{}", file_, node.source().begin.line);
  }

  std::unexpected<Error> wrong(const toml::node& node, const std::string& what) const {
    return fail(ErrorCode::kConfig, fmt::format("{}: {}", place(node), what));
  }

  const std::string& file_;
  Config& config_;
  std::string tables_;  // "disk.", while one of [[disk]] is read
  std::string item_;    // "disk \"data\": ", where that has an id
};

Result<std::string> read_text(const std::string& path) {
  TRY_ASSIGN(const UniqueFd fd, open_path(path, O_RDONLY | O_NOCTTY | O_NONBLOCK));
  auto size = regular_file_size(fd.get());
  if (!size) {
    return std::unexpected(std::move(size).error().with_code(ErrorCode::kConfig).context(path));
  }
  if (*size > kFileMax) {
    return fail(ErrorCode::kConfig, fmt::format("{}: larger than 1 MiB", path));
  }
  std::string text(*size, '\0');
  auto read = read_full_at(fd.get(), std::as_writable_bytes(std::span(text)), 0);
  if (!read) {
    return std::unexpected(std::move(read).error().context(path));
  }
  return text;
}

}  // namespace

Result<> read_config_file(const std::string& path, Config& config) {
  TRY_ASSIGN(const std::string text, read_text(path));
  return read_config_text(text, path, config);
}

Result<> read_config_text(std::string_view text, const std::string& path, Config& config) {
  if (const auto line = Scanner(text).overlong_key()) {
    return fail(ErrorCode::kConfig,
                fmt::format("{}:{}: a key of more than {} parts", path, *line, kKeyPartsMax));
  }
  try {
    return FileReader(path, config).read_table(toml::parse(text, path), "");
  } catch (const toml::parse_error& error) {
    return fail(ErrorCode::kConfig, fmt::format("{}:{}: {}", path, error.source().begin.line,
                                                printable(error.description())));
  } catch (const ParserGap&) {
    return fail(ErrorCode::kConfig, path + ": not TOML");
  }
}

}  // namespace vireo
