// SPDX-License-Identifier: Apache-2.0
// Fuzz target: what an operator writes. The input is a configuration file's text, and behind the
// first byte 0xff (which no UTF-8 has) command-line arguments, separated by more of them.
#include "src/config.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/options.h"

namespace vireo {
namespace {

constexpr char kSeparator = '\xff';

/// An operator gets one line that begins with what he wrote, of one of his kinds.
void check_refusal(const Error& error) {
  CHECK(error.code() == ErrorCode::kConfig || error.code() == ErrorCode::kUsage ||
        error.code() == ErrorCode::kMissingInput || error.code() == ErrorCode::kBadInput);
  CHECK(!error.message().empty());
}

/// What was accepted prints as what gives the same again.
void check_round_trip(const Config& config) {
  const std::string printed = to_toml(config);
  Config again;
  CHECK(read_config_text(printed, "printed", again));
  CHECK(validate(again));
  CHECK(to_toml(again) == printed);
}

void take_file(std::string_view text) {
  Config config;
  const Result<> read = read_config_text(text, "vm.toml", config);
  if (!read) {
    check_refusal(read.error());
    CHECK(read.error().code() == ErrorCode::kConfig);
    const std::string& message = read.error().message();
    CHECK(message.starts_with("vm.toml:"));
    CHECK(std::ranges::none_of(message, [](char c) { return c >= '\0' && c < ' '; }));
    return;
  }
  if (const Result<> valid = validate(config); !valid) {
    check_refusal(valid.error());
    return;
  }
  check_round_trip(config);
}

void take_arguments(std::string_view text) {
  std::vector<std::string> words = {"vireo"};
  for (;;) {
    const std::size_t end = text.find(kSeparator);
    // A NUL ends an argument; and nothing shall be read but the working directory's files.
    const std::string_view word = text.substr(0, end);
    std::string& kept = words.emplace_back(word.substr(0, word.find('\0')));
    std::ranges::replace(kept, '/', '_');
    if (end == std::string_view::npos) {
      break;
    }
    text.remove_prefix(end + 1);
  }
  std::vector<const char*> arguments;
  arguments.reserve(words.size());
  for (const std::string& word : words) {
    arguments.push_back(word.c_str());
  }
  const Result<Invocation> invocation = parse_command_line(arguments);
  if (!invocation) {
    check_refusal(invocation.error());
  } else if (invocation->command == Command::kPrint) {
    CHECK(!invocation->text.empty());
  } else {
    check_round_trip(invocation->config);
  }
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string input(data, data + size);
  const std::string_view text = input;
  const std::size_t separator = text.find(vireo::kSeparator);
  vireo::take_file(text.substr(0, separator));
  if (separator != std::string_view::npos) {
    vireo::take_arguments(text.substr(separator + 1));
  }
  return 0;
}
