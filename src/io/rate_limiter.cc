// SPDX-License-Identifier: Apache-2.0
#include "src/io/rate_limiter.h"

namespace vireo {

namespace {

void configure_bucket(std::optional<TokenBucket>& bucket,
                      const std::optional<TokenBucketConfig>& config, std::uint64_t now_ns) {
  if (!config) {
    bucket.reset();
  } else if (!bucket || bucket->config() != *config) {
    bucket.emplace(*config, now_ns);
  }
}

/// `bucket` as it goes on from `state`; false where no bucket could.
bool restore_bucket(std::optional<TokenBucket>& bucket, const TokenBucketState& state,
                    std::uint64_t now_ns) {
  return !bucket || bucket->config() != state.config || bucket->restore(state, now_ns);
}

}  // namespace

void RateLimiter::configure(const RateLimitConfig& config, std::uint64_t now_ns) {
  const std::scoped_lock lock(mutex_);
  configure_bucket(bandwidth_, config.bandwidth, now_ns);
  configure_bucket(ops_, config.ops, now_ns);
}

std::uint64_t RateLimiter::take(std::uint64_t bytes, std::uint64_t now_ns) {
  const std::scoped_lock lock(mutex_);
  if (ops_) {
    if (const std::uint64_t wait_ns = ops_->take(1, now_ns); wait_ns != 0) {
      return wait_ns;
    }
  }
  const std::uint64_t wait_ns = bandwidth_ ? bandwidth_->take(bytes, now_ns) : 0;
  if (wait_ns != 0 && ops_) {
    ops_->give_back(1);
  }
  return wait_ns;
}

RateLimiterState RateLimiter::state(std::uint64_t now_ns) {
  const std::scoped_lock lock(mutex_);
  RateLimiterState state;
  if (bandwidth_) {
    state.bandwidth = bandwidth_->state(now_ns);
  }
  if (ops_) {
    state.ops = ops_->state(now_ns);
  }
  return state;
}

bool RateLimiter::restore(const RateLimiterState& state, std::uint64_t now_ns) {
  const std::scoped_lock lock(mutex_);
  std::optional<TokenBucket> bandwidth = bandwidth_;
  if (!restore_bucket(bandwidth, state.bandwidth, now_ns) ||
      !restore_bucket(ops_, state.ops, now_ns)) {
    return false;
  }
  bandwidth_ = bandwidth;
  return true;
}

}  // namespace vireo
