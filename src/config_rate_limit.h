// SPDX-License-Identifier: Apache-2.0
// The keys of a device's rate limit, for the table of all keys (src/config_keys.cc). Each device
// has the same below its own name: `Of` is the function that finds its limit.
#pragma once

#include <cstdint>
#include <optional>

#include "src/base/error.h"
#include "src/config.h"
#include "src/config_value.h"

namespace vireo {

/// kConfig, beginning with `key`, where a bucket lacks something.
Result<> validate_rate_limit(const RateLimitConfig& limit, std::string_view key);

inline constexpr auto kBandwidth = &RateLimitConfig::bandwidth;
inline constexpr auto kOps = &RateLimitConfig::ops;

template <auto Of, auto Bucket>
TokenBucketConfig& bucket_of(Config& config) {
  std::optional<TokenBucketConfig>& bucket = Of(config).*Bucket;
  return bucket ? *bucket : bucket.emplace();
}

/// Bytes for a bandwidth, a number for operations.
template <auto Bucket>
Result<std::uint64_t> tokens(const ConfigValue& value) {
  constexpr std::int64_t kOpsMax = std::int64_t{1} << 50;
  if constexpr (Bucket == kBandwidth) {
    return value.size();
  } else {
    TRY_ASSIGN(const std::int64_t count, value.integer(0, kOpsMax));
    return static_cast<std::uint64_t>(count);
  }
}

template <auto Of, auto Bucket, auto Member>
Result<> set_tokens(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::uint64_t count, tokens<Bucket>(value));
  if (count == 0 && Member == &TokenBucketConfig::size) {
    return value.wrong("wants more than 0; leave the limit out for none");
  }
  bucket_of<Of, Bucket>(config).*Member = count;
  return {};
}

template <auto Of, auto Bucket>
Result<> set_refill(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::uint64_t ns, value.duration());
  if (ns == 0) {
    return value.wrong("wants a time above 0");
  }
  bucket_of<Of, Bucket>(config).refill_ns = ns;
  return {};
}

}  // namespace vireo
