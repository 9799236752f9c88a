// SPDX-License-Identifier: Apache-2.0
// Rows of the tests of configuration keys: what a key takes, what it refuses, and with which words.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/config.h"

namespace vireo {

struct Accepted {
  std::string value;  ///< as TOML has it
  std::function<bool(const Config&)> arrived;
};
struct Refused {
  std::string value;
  std::string why;  ///< words of the message
};
struct Row {
  std::string key;
  std::vector<Accepted> accepted;
  std::vector<Refused> refused;
};

inline constexpr const char* kText = "wants text in quotes";
inline constexpr const char* kFlag = "wants true or false";

inline Row text_row(const std::string& key, const std::function<std::string(const Config&)>& get) {
  return {.key = key,
          .accepted = {{R"("a b")", [get](const Config& c) { return get(c) == "a b"; }},
                       {R"('\')", [get](const Config& c) { return get(c) == "\\"; }}},
          .refused = {{"1", kText}, {"true", kText}, {R"("a\u0000b")", "NUL"}}};
}

inline Row path_row(const std::string& key, const std::function<std::string(const Config&)>& get) {
  Row row = text_row(key, get);
  row.accepted.push_back({R"("fd:3")", [get](const Config& c) { return get(c) == "fd:3"; }});
  row.refused.push_back({R"("")", "wants a path"});
  row.refused.push_back({R"("fd:")", "wants fd:N"});
  row.refused.push_back({R"("fd:a:b")", "LISTEN_FDNAMES"});
  return row;
}

inline Row flag_row(const std::string& key, std::function<bool(const Config&)> get) {
  return {.key = key,
          .accepted = {{"true", get}, {"false", [get](const Config& c) { return !get(c); }}},
          .refused = {{R"("true")", kFlag}, {"1", kFlag}, {"[]", kFlag}}};
}

/// The keys of a device's rate limit, below `key`.
inline std::vector<Row> rate_limit_rows(
    const std::string& key, const std::function<const RateLimitConfig&(const Config&)>& get) {
  const auto bandwidth = [get](std::uint64_t TokenBucketConfig::* member, std::uint64_t value) {
    return [=](const Config& c) { return (*get(c).bandwidth).*member == value; };
  };
  const auto ops = [get](std::uint64_t TokenBucketConfig::* member, std::uint64_t value) {
    return [=](const Config& c) { return (*get(c).ops).*member == value; };
  };
  constexpr const char* kAboveNone = "more than 0";
  constexpr const char* kNumber = "whole number";
  return {
      {.key = key + ".bandwidth.size",
       .accepted = {{R"("10M")", bandwidth(&TokenBucketConfig::size, 10 << 20)}},
       .refused = {{R"("0K")", kAboveNone}, {R"("10")", "such as"}, {"10", "such as"}}},
      {.key = key + ".bandwidth.refill",
       .accepted = {{R"("250ms")", bandwidth(&TokenBucketConfig::refill_ns, 250'000'000)}},
       .refused = {{R"("0s")", "above 0"}, {R"("1")", "such as"}, {"1", "such as"}}},
      {.key = key + ".bandwidth.burst",
       .accepted = {{R"("0K")", bandwidth(&TokenBucketConfig::burst, 0)},
                    {R"("1M")", bandwidth(&TokenBucketConfig::burst, 1 << 20)}},
       .refused = {{"true", "such as"}}},
      {.key = key + ".ops.size",
       .accepted = {{"1000", ops(&TokenBucketConfig::size, 1000)}},
       .refused = {{"0", kAboveNone}, {"-1", "from 0"}, {R"("1K")", kNumber}}},
      {.key = key + ".ops.refill",
       .accepted = {{R"("1h")", ops(&TokenBucketConfig::refill_ns, 3'600'000'000'000)}},
       .refused = {{R"("0s")", "above 0"}, {R"("")", "such as"}, {"1", "such as"}}},
      {.key = key + ".ops.burst",
       .accepted = {{"0", ops(&TokenBucketConfig::burst, 0)}},
       .refused = {{"-1", "from 0"}, {"1.5", kNumber}}},
  };
}

/// Of [[disk]], [[volume]] and [cloud_init].
std::vector<Row> disk_rows();

}  // namespace vireo
