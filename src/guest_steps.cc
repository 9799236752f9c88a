// SPDX-License-Identifier: Apache-2.0
#include "src/guest_steps.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

namespace vireo {

namespace {

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '.';
}

/// Linux's line: "initcall NAME+0xOFFSET/0xSIZE [MODULE] returned RESULT after TIME usecs".
std::optional<GuestStep> parse_step(std::string_view line) {
  constexpr std::string_view kBegin = "initcall ";
  constexpr std::string_view kResult = " returned ";
  constexpr std::string_view kTime = " after ";
  constexpr std::string_view kUnit = " usecs";
  const std::size_t begin = line.find(kBegin);
  if (begin == std::string_view::npos) {
    return std::nullopt;
  }
  line.remove_prefix(begin + kBegin.size());
  const std::string_view name = line.substr(0, line.find('+'));
  const std::size_t result = line.find(kResult);
  const std::size_t time = result == std::string_view::npos ? result : line.find(kTime, result);
  if (time == std::string_view::npos || name.empty() || name.size() == line.size() ||
      !std::ranges::all_of(name, is_name_character)) {
    return std::nullopt;
  }
  line.remove_prefix(time + kTime.size());
  GuestStep step = {.name = std::string(name)};
  const auto [end, error] =
      std::from_chars(line.data(), line.data() + line.size(), step.duration_us);
  const std::string_view rest(end, static_cast<std::size_t>(line.data() + line.size() - end));
  if (error != std::errc() || !rest.starts_with(kUnit)) {
    return std::nullopt;
  }
  return step;
}

}  // namespace

void GuestSteps::transmit(std::byte byte) {
  const char c = std::to_integer<char>(byte);
  if (c == '\n') {
    end_line();
  } else if (line_.size() < kLineMax) {
    line_.push_back(c);
  } else {
    too_long_ = true;
  }
  next_.transmit(byte);
}

void GuestSteps::end_line() {
  if (!std::exchange(too_long_, false) && steps_.size() < kStepsMax) {
    if (std::optional<GuestStep> step = parse_step(line_)) {
      steps_.push_back(std::move(*step));
    }
  }
  line_.clear();
}

}  // namespace vireo
