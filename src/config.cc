// SPDX-License-Identifier: Apache-2.0
#include "src/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>
#include <utility>

#define TOML_EXCEPTIONS 0
#include <fcntl.h>

#include <fmt/core.h>
#include <toml++/toml.h>

#include "src/base/fd.h"

namespace vireo {

namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kFileMax = kMiB;
constexpr std::uint64_t kMemoryMin = 32 * kMiB;
constexpr std::uint64_t kMemoryMax = std::uint64_t{1} << 40;
constexpr unsigned kCpusMax = 64;

/// One value on its way into the configuration: a node of the file, or an option's text.
class Value {
 public:
  Value(const toml::node& node, std::string where, ErrorCode code)
      : node_(&node), where_(std::move(where)), code_(code) {}
  Value(std::string_view text, std::string where, ErrorCode code)
      : text_(text), where_(std::move(where)), code_(code) {}

  /// An error that names the place.
  std::unexpected<Error> wrong(std::string_view what) const {
    return fail(code_, fmt::format("{}: {}", where_, what));
  }

  Result<std::string> string() const {
    std::string text(text_);
    if (node_ != nullptr) {
      const auto* const value = node_->as_string();
      if (value == nullptr) {
        return wrong("wants text in quotes");
      }
      text = value->get();
    }
    if (text.find('\0') != std::string::npos) {
      return wrong("holds a NUL byte");
    }
    return text;
  }

  Result<bool> boolean() const {
    if (node_ != nullptr) {
      const auto* const value = node_->as_boolean();
      if (value == nullptr) {
        return wrong("wants true or false");
      }
      return value->get();
    }
    if (text_ == "true" || text_ == "false") {
      return text_ == "true";
    }
    return wrong("wants true or false");
  }

  Result<std::int64_t> integer(std::int64_t low, std::int64_t high) const {
    std::int64_t number = 0;
    const std::string range = fmt::format("wants a whole number from {} to {}", low, high);
    if (node_ != nullptr) {
      const auto* const value = node_->as_integer();
      if (value == nullptr) {
        return wrong(range);
      }
      number = value->get();
    } else {
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), number);
      if (error != std::errc() || end != text_.data() + text_.size()) {
        return wrong(range);
      }
    }
    if (number < low || number > high) {
      return wrong(fmt::format("{} is out of range: {}", number, range));
    }
    return number;
  }

  Result<std::uint64_t> size() const {
    const std::string hint = "wants a size with a binary suffix, such as \"512M\" or \"2G\"";
    if (node_ != nullptr && node_->as_string() == nullptr) {
      return wrong(hint);
    }
    TRY_ASSIGN(const std::string text, string());
    const std::optional<std::uint64_t> bytes = parse_size(text);
    if (!bytes) {
      return wrong(fmt::format("\"{}\": {}", text, hint));
    }
    return *bytes;
  }

  Result<std::vector<std::string>> strings() const {
    const auto* const array = node_ != nullptr ? node_->as_array() : nullptr;
    if (array == nullptr) {
      return wrong("wants a list of texts");
    }
    std::vector<std::string> texts;
    for (const toml::node& element : *array) {
      TRY_ASSIGN(std::string text, Value(element, where_, code_).string());
      texts.push_back(std::move(text));
    }
    return texts;
  }

  /// One of a few words; the index of the word.
  Result<std::size_t> word(std::initializer_list<std::string_view> words) const {
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

  const toml::node* node() const { return node_; }

 private:
  const toml::node* node_ = nullptr;
  std::string_view text_;
  std::string where_;
  ErrorCode code_;
};

using Setter = Result<> (*)(const Value&, Config&);

/// A key of the configuration file; without a setter it belongs to a later version.
struct Key {
  std::string_view path;
  Setter set = nullptr;
};

// Setters for plain members.
template <auto Member, auto Section>
Result<> set_text(const Value& value, Config& config) {
  TRY_ASSIGN((config.*Section).*Member, value.string());
  return {};
}
template <auto Member, auto Section>
Result<> set_flag(const Value& value, Config& config) {
  TRY_ASSIGN((config.*Section).*Member, value.boolean());
  return {};
}

/// A key whose other values belong to a later version.
template <std::size_t Length>
struct Literal {
  constexpr Literal(const char (&text)[Length]) { std::copy_n(text, Length, data); }
  char data[Length] = {};
};
template <Literal Only>
Result<> only_word(const Value& value, Config& /*config*/) {
  TRY_ASSIGN(const std::string text, value.string());
  if (text != Only.data) {
    return value.wrong(fmt::format("\"{}\" is not yet supported; \"{}\" is", text, Only.data));
  }
  return {};
}
template <bool Only>
Result<> only_flag(const Value& value, Config& /*config*/) {
  TRY_ASSIGN(const bool flag, value.boolean());
  if (flag != Only) {
    return value.wrong(fmt::format("{} is not yet supported; {} is", flag, Only));
  }
  return {};
}

bool is_label_text(std::string_view text) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !text.empty() && text.size() <= 128 && text[0] != '.' && text[0] != '-' &&
         std::ranges::all_of(text, allowed);
}

constexpr std::string_view kLabelRule =
    "wants 1 to 128 of A-Z a-z 0-9 . _ -, beginning with none of . -";

Result<> set_name(const Value& value, Config& config) {
  TRY_ASSIGN(config.name, value.string());
  return is_label_text(config.name) ? Result<>() : value.wrong(kLabelRule);
}

Result<> set_namespace(const Value& value, Config& config) {
  TRY_ASSIGN(config.namespace_label, value.string());
  return is_label_text(config.namespace_label) ? Result<>() : value.wrong(kLabelRule);
}

Result<> set_labels(const Value& value, Config& config) {
  const auto* const table = value.node() != nullptr ? value.node()->as_table() : nullptr;
  if (table == nullptr) {
    return value.wrong("wants a table of texts");
  }
  for (const auto& [key, node] : *table) {
    const auto* const text = node.as_string();
    if (text == nullptr) {
      return value.wrong("wants a table of texts");
    }
    config.labels[std::string(key.str())] = text->get();
  }
  return {};
}

Result<> set_cpus(const Value& value, Config& config) {
  TRY_ASSIGN(const std::int64_t cpus, value.integer(1, kCpusMax));
  config.machine.cpus = static_cast<unsigned>(cpus);
  return {};
}

template <unsigned arch::CpuTopology::* Member>
Result<> set_topology(const Value& value, Config& config) {
  TRY_ASSIGN(const std::int64_t count, value.integer(1, kCpusMax));
  if (!config.machine.topology) {
    config.machine.topology.emplace();
  }
  (*config.machine.topology).*Member = static_cast<unsigned>(count);
  return {};
}

Result<> set_memory(const Value& value, Config& config) {
  TRY_ASSIGN(const std::uint64_t bytes, value.size());
  if (bytes < kMemoryMin || bytes > kMemoryMax || bytes % kMiB != 0) {
    return value.wrong(
        fmt::format("{} is out of range: wants whole MiB from 32M to 1T", format_size(bytes)));
  }
  config.machine.memory_bytes = bytes;
  return {};
}

Result<> set_huge_pages(const Value& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"off", "transparent", "2M", "1G"}));
  config.machine.huge_pages = static_cast<HugePages>(index);
  return {};
}

Result<> set_uuid(const Value& value, Config& config) {
  TRY_ASSIGN(const std::string text, value.string());
  std::array<std::uint8_t, 16> uuid = {};
  std::size_t digits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool dash_place = i == 8 || i == 13 || i == 18 || i == 23;
    unsigned digit = 0;
    const bool is_digit =
        std::from_chars(text.data() + i, text.data() + i + 1, digit, 16).ec == std::errc();
    if (text.size() != 36 || (dash_place ? text[i] != '-' : !is_digit)) {
      return value.wrong("wants a UUID such as \"8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2d\"");
    }
    if (!dash_place) {
      uuid[digits / 2] =
          static_cast<std::uint8_t>(static_cast<unsigned>(uuid[digits / 2] << 4) | digit);
      ++digits;
    }
  }
  if (digits != 32) {
    return value.wrong("wants a UUID such as \"8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2d\"");
  }
  config.machine.uuid = uuid;
  return {};
}

Result<> set_cpu_features(const Value& value, Config& config) {
  TRY_ASSIGN(config.machine.cpu_features, value.strings());
  for (const std::string& feature : config.machine.cpu_features) {
    if (feature.size() < 2 || (feature[0] != '-' && feature[0] != '+')) {
      return value.wrong(
          fmt::format("\"{}\": wants \"-name\" to mask a feature or \"+name\" to "
                      "insist on one",
                      feature));
    }
  }
  return {};
}

Result<> set_io_threads(const Value& value, Config& /*config*/) {
  TRY_ASSIGN(const std::int64_t count, value.integer(0, kCpusMax));
  return count == 0 ? Result<>() : value.wrong("other than 0 is not yet supported");
}

template <bool BootOptions::* Member>
Result<> set_auto_off(const Value& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"auto", "off"}));
  config.boot.*Member = index == 0;
  return {};
}

Result<> set_cache(const Value& value, Config& config) {
  TRY_ASSIGN(config.boot.cache, value.string());
  return config.boot.cache.empty() ? value.wrong("wants auto, off or a directory") : Result<>();
}

Result<> set_cmdline(const Value& value, Config& config) {
  TRY_ASSIGN(config.boot.cmdline, value.string());
  return {};
}

Result<> set_serial_mode(const Value& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"stdio", "file", "pty", "unix", "null"}));
  config.serial.mode = static_cast<SerialMode>(index);
  return {};
}

Result<> set_log_level(const Value& value, Config& config) {
  TRY_ASSIGN(const std::size_t index,
             value.word({"trace", "debug", "info", "warn", "error", "off"}));
  config.log.level = static_cast<LogLevel>(index);
  return {};
}

Result<> set_log_format(const Value& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"text", "json"}));
  config.log.format = static_cast<LogFormat>(index);
  return {};
}

// Every key of the configuration file, those of later versions included.
constexpr auto kKeys = std::to_array<Key>({
    {"name", set_name},
    {"namespace", set_namespace},
    {"labels", set_labels},
    {"machine.cpus", set_cpus},
    {"machine.topology.sockets", set_topology<&arch::CpuTopology::sockets>},
    {"machine.topology.cores", set_topology<&arch::CpuTopology::cores>},
    {"machine.topology.threads", set_topology<&arch::CpuTopology::threads>},
    {"machine.memory", set_memory},
    {"machine.hugepages", set_huge_pages},
    {"machine.mergeable", set_flag<&MachineConfig::mergeable, &Config::machine>},
    {"machine.prefault", set_flag<&MachineConfig::prefault, &Config::machine>},
    {"machine.uuid", set_uuid},
    {"machine.cpu_features", set_cpu_features},
    {"machine.transport", only_word<"auto">},
    {"machine.io_threads", set_io_threads},
    {"machine.on_reboot", only_word<"exit">},
    {"machine.track_dirty", only_flag<false>},
    {"boot.kernel", set_text<&BootOptions::kernel, &Config::boot>},
    {"boot.initramfs", set_text<&BootOptions::initramfs, &Config::boot>},
    {"boot.cache", set_cache},
    {"boot.unpack", set_auto_off<&BootOptions::unpack>},
    {"boot.kaslr", set_auto_off<&BootOptions::kaslr>},
    {"boot.cmdline", set_cmdline},
    {"boot.append", set_text<&BootOptions::append, &Config::boot>},
    {"serial.mode", set_serial_mode},
    {"serial.path", set_text<&ConsoleConfig::path, &Config::serial>},
    {"serial.append", set_flag<&ConsoleConfig::append, &Config::serial>},
    {"process.pid_file", set_text<&ProcessConfig::pid_file, &Config::process>},
    {"process.timeline", set_text<&ProcessConfig::timeline, &Config::process>},
    {"process.profile", set_text<&ProcessConfig::profile, &Config::process>},
    {"process.boot_timer", set_flag<&ProcessConfig::boot_timer, &Config::process>},
    {"process.notify"},
    {"log.level", set_log_level},
    {"log.format", set_log_format},
    {"log.file", set_text<&LogConfig::file, &Config::log>},
    {"ready.when", only_word<"started">},
    {"ready.timeout"},
    {"disk"},
    {"volume"},
    {"cloud_init"},
    {"net"},
    {"port"},
    {"vsock"},
    {"fs"},
    {"balloon"},
    {"rng"},
    {"guest"},
    {"file"},
    {"limits"},
    {"control"},
    {"metrics"},
    {"sandbox"},
});

std::size_t edit_distance(std::string_view left, std::string_view right) {
  std::vector<std::size_t> row(right.size() + 1);
  for (std::size_t j = 0; j <= right.size(); ++j) {
    row[j] = j;
  }
  for (std::size_t i = 1; i <= left.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= right.size(); ++j) {
      const std::size_t replace = diagonal + (left[i - 1] == right[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replace, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[right.size()];
}

std::string unknown_key(std::string_view path) {
  const auto closest = std::ranges::min_element(
      kKeys, {}, [path](const Key& key) { return edit_distance(key.path, path); });
  std::string text = fmt::format("unknown key \"{}\"", path);
  if (edit_distance(closest->path, path) <= 3) {
    text += fmt::format("; did you mean \"{}\"?", closest->path);
  }
  return text;
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
    const std::string place = fmt::format("{}:{}", file_, node.source().begin.line);
    const auto exact = std::ranges::find(kKeys, path, &Key::path);
    if (exact != kKeys.end()) {
      if (exact->set == nullptr) {
        return fail(ErrorCode::kConfig,
                    fmt::format("{}: {}: not yet supported; remove it", place, path));
      }
      return exact->set(Value(node, fmt::format("{}: {}", place, path), ErrorCode::kConfig),
                        config_);
    }
    const std::string prefix = path + ".";
    const bool section = std::ranges::any_of(
        kKeys, [&prefix](const Key& key) { return key.path.starts_with(prefix); });
    if (!section) {
      return fail(ErrorCode::kConfig, fmt::format("{}: {}", place, unknown_key(path)));
    }
    const auto* const table = node.as_table();
    if (table == nullptr) {
      return fail(ErrorCode::kConfig, fmt::format("{}: {}: wants a table", place, path));
    }
    return read_table(*table, prefix);
  }

  const std::string& file_;
  Config& config_;
};

Result<std::string> read_text(const std::string& path) {
  TRY_ASSIGN(const UniqueFd fd, open_file(path, O_RDONLY | O_NOCTTY | O_NONBLOCK));
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

std::string hex_uuid(const std::array<std::uint8_t, 16>& uuid) {
  std::string text;
  for (std::size_t i = 0; i < uuid.size(); ++i) {
    text += i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "";
    text += fmt::format("{:02x}", uuid[i]);
  }
  return text;
}

toml::table machine_table(const MachineConfig& machine) {
  constexpr std::array kHugePages = {"off", "transparent", "2M", "1G"};
  const arch::CpuTopology topology = resolved_topology(machine);
  toml::array features;
  for (const std::string& feature : machine.cpu_features) {
    features.push_back(feature);
  }
  toml::table table{
      {"cpus", static_cast<std::int64_t>(machine.cpus)},
      {"topology", toml::table{{"sockets", static_cast<std::int64_t>(topology.sockets)},
                               {"cores", static_cast<std::int64_t>(topology.cores)},
                               {"threads", static_cast<std::int64_t>(topology.threads)}}},
      {"memory", format_size(machine.memory_bytes)},
      {"hugepages", kHugePages.at(std::to_underlying(machine.huge_pages))},
      {"mergeable", machine.mergeable},
      {"prefault", machine.prefault},
      {"cpu_features", features},
      {"transport", "auto"},
      {"io_threads", 0},
      {"on_reboot", "exit"},
      {"track_dirty", false},
  };
  if (machine.uuid) {
    table.insert("uuid", hex_uuid(*machine.uuid));
  }
  return table;
}

toml::table boot_table(const BootOptions& boot) {
  toml::table table{
      {"kernel", boot.kernel},
      {"cache", boot.cache},
      {"unpack", boot.unpack ? "auto" : "off"},
      {"kaslr", boot.kaslr ? "auto" : "off"},
      {"append", boot.append},
  };
  if (!boot.initramfs.empty()) {
    table.insert("initramfs", boot.initramfs);
  }
  if (boot.cmdline) {
    table.insert("cmdline", *boot.cmdline);
  }
  return table;
}

}  // namespace

std::optional<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end + 1 != text.data() + text.size()) {
    return std::nullopt;
  }
  constexpr std::string_view kSuffixes = "KMGT";
  const std::size_t power = kSuffixes.find(*end);
  if (power == std::string_view::npos) {
    return std::nullopt;
  }
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(number, std::uint64_t{1} << (10 * (power + 1)), &bytes)) {
    return std::nullopt;
  }
  return bytes;
}

std::string format_size(std::uint64_t bytes) {
  constexpr std::string_view kSuffixes = "KMGT";
  std::size_t power = 0;
  std::uint64_t number = bytes >> 10;
  while (power + 1 < kSuffixes.size() && number != 0 && number % 1024 == 0) {
    number /= 1024;
    ++power;
  }
  return fmt::format("{}{}", number, kSuffixes[power]);
}

arch::CpuTopology resolved_topology(const MachineConfig& machine) {
  return machine.topology.value_or(
      arch::CpuTopology{.sockets = 1, .cores = machine.cpus, .threads = 1});
}

Result<> read_config_file(const std::string& path, Config& config) {
  TRY_ASSIGN(const std::string text, read_text(path));
  const toml::parse_result parsed = toml::parse(text, path);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return fail(ErrorCode::kConfig,
                fmt::format("{}:{}: {}", path, error.source().begin.line, error.description()));
  }
  return FileReader(path, config).read_table(parsed.table(), "");
}

Result<> set_config_option(Config& config, std::string_view key, std::string_view option,
                           std::string_view text) {
  const auto found = std::ranges::find(kKeys, key, &Key::path);
  CHECK(found != kKeys.end() && found->set != nullptr);
  return found->set(Value(text, std::string(option), ErrorCode::kUsage), config);
}

Result<> validate(const Config& config) {
  if (config.boot.kernel.empty()) {
    return fail(ErrorCode::kConfig,
                "boot.kernel: missing; name a bzImage or an ELF vmlinux (--kernel PATH)");
  }
  const arch::CpuTopology topology = resolved_topology(config.machine);
  if (topology.sockets * topology.cores * topology.threads != config.machine.cpus) {
    return fail(
        ErrorCode::kConfig,
        fmt::format("machine.topology: {} sockets x {} cores x {} threads are not "
                    "machine.cpus = {}",
                    topology.sockets, topology.cores, topology.threads, config.machine.cpus));
  }
  const SerialMode mode = config.serial.mode;
  const bool wants_path = mode == SerialMode::kFile || mode == SerialMode::kUnix;
  if (wants_path == config.serial.path.empty()) {
    return fail(ErrorCode::kConfig,
                wants_path ? "serial.path: missing; modes file and unix want it"
                           : "serial.path: only modes file and unix take one; remove it");
  }
  if (config.serial.append && mode != SerialMode::kFile) {
    return fail(ErrorCode::kConfig, "serial.append: only mode file takes it; remove it");
  }
  return {};
}

std::string to_toml(const Config& config) {
  constexpr std::array kModes = {"stdio", "file", "pty", "unix", "null"};
  constexpr std::array kLevels = {"trace", "debug", "info", "warn", "error", "off"};
  toml::table labels;
  for (const auto& [key, text] : config.labels) {
    labels.insert(key, text);
  }
  toml::table serial{{"mode", kModes.at(std::to_underlying(config.serial.mode))},
                     {"append", config.serial.append}};
  toml::table process{{"boot_timer", config.process.boot_timer}};
  toml::table log{{"level", kLevels.at(std::to_underlying(config.log.level))},
                  {"format", config.log.format == LogFormat::kText ? "text" : "json"}};
  const auto add = [](toml::table& table, std::string_view key, const std::string& text) {
    if (!text.empty()) {
      table.insert(key, text);
    }
  };
  add(serial, "path", config.serial.path);
  add(process, "pid_file", config.process.pid_file);
  add(process, "timeline", config.process.timeline);
  add(process, "profile", config.process.profile);
  add(log, "file", config.log.file);
  toml::table root{{"machine", machine_table(config.machine)},
                   {"boot", boot_table(config.boot)},
                   {"serial", serial},
                   {"process", process},
                   {"log", log},
                   {"ready", toml::table{{"when", "started"}}}};
  add(root, "name", config.name);
  add(root, "namespace", config.namespace_label);
  if (!labels.empty()) {
    root.insert("labels", labels);
  }
  std::ostringstream text;
  text << root << '\n';
  return text.str();
}

}  // namespace vireo
