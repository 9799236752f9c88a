// SPDX-License-Identifier: Apache-2.0
// How much a device may do: bytes and operations in a time, each by a token bucket; both must have
// enough. One for each direction of a device, shared by its queues, changed while they run.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>

#include "src/io/token_bucket.h"

namespace vireo {

struct RateLimitConfig {
  std::optional<TokenBucketConfig> bandwidth;  ///< tokens are bytes
  std::optional<TokenBucketConfig> ops;        ///< tokens are operations
  bool operator==(const RateLimitConfig&) const = default;
};

/// See TokenBucketState. A size of 0: there is no such limit.
struct RateLimiterState {
  TokenBucketState bandwidth;
  TokenBucketState ops;
  void fields(auto& ar) { ar(bandwidth, ops); }
  bool operator==(const RateLimiterState&) const = default;
};

class RateLimiter {
 public:
  explicit RateLimiter(const RateLimitConfig& config = {}) { configure(config, 0); }

  /// New limits, with full buckets; one that stays as it was keeps what it has. Any thread.
  void configure(const RateLimitConfig& config, std::uint64_t now_ns);
  /// Lets one operation of `bytes` bytes through and returns 0; or how many nanoseconds it has to
  /// wait before it is worth another try. Any thread.
  std::uint64_t take(std::uint64_t bytes, std::uint64_t now_ns);

  RateLimiterState state(std::uint64_t now_ns);
  /// Goes on from there, with each limit that is the same as it was; others have full buckets.
  /// False, and nothing done, where the numbers cannot be a limiter's.
  [[nodiscard]] bool restore(const RateLimiterState& state, std::uint64_t now_ns);

 private:
  std::mutex mutex_;
  std::optional<TokenBucket> bandwidth_;
  std::optional<TokenBucket> ops_;
};

}  // namespace vireo
