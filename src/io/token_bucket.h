// SPDX-License-Identifier: Apache-2.0
// A token bucket: arithmetic only; time is an argument. Not thread-safe.
//
// It starts full. A one-time burst lies on top of it: used up first, and never filled again. What
// asks for more than the whole bucket is let through and leaves it in debt, so that it costs its
// time afterwards (as Firecracker's do).
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace vireo {

struct TokenBucketConfig {
  std::uint64_t size = 0;       ///< tokens; not 0
  std::uint64_t refill_ns = 0;  ///< from empty to full; not 0
  std::uint64_t burst = 0;      ///< tokens, once
  bool operator==(const TokenBucketConfig&) const = default;
};

/// What a bucket has left, for one with the same config elsewhere and at another time.
struct TokenBucketState {
  TokenBucketConfig config;
  std::uint64_t missing = 0;    ///< tokens until it is full; above its size: it is in debt
  std::uint64_t burst = 0;      ///< left
  std::uint64_t remainder = 0;  ///< of a token, in parts of refill_ns
  void fields(auto& ar) {
    ar(config.size, config.refill_ns, config.burst, missing, burst, remainder);
  }
  bool operator==(const TokenBucketState&) const = default;
};

class TokenBucket {
 public:
  /// More than one request takes.
  static constexpr std::uint64_t kDebtMax = std::uint64_t{1} << 32;

  TokenBucket(const TokenBucketConfig& config, std::uint64_t now_ns)
      : config_(config),
        tokens_(static_cast<Tokens>(config.size)),
        burst_(config.burst),
        filled_ns_(now_ns) {}

  /// Takes `count` tokens and returns 0; or none, and returns how many nanoseconds it takes until
  /// there are so many.
  std::uint64_t take(std::uint64_t count, std::uint64_t now_ns) {
    refill(now_ns);
    const std::uint64_t from_burst = std::min(count, burst_);
    const auto rest = static_cast<Tokens>(count - from_burst);
    if (rest > 0 && rest > tokens_ && (tokens_ <= 0 || count - from_burst <= config_.size)) {
      return time_until(std::min(rest, static_cast<Tokens>(config_.size)));
    }
    burst_ -= from_burst;
    tokens_ -= rest;
    return 0;
  }

  /// Gives back what take() has taken.
  void give_back(std::uint64_t count) {
    tokens_ = std::min(tokens_ + static_cast<Tokens>(count), static_cast<Tokens>(config_.size));
  }

  const TokenBucketConfig& config() const { return config_; }

  TokenBucketState state(std::uint64_t now_ns) {
    refill(now_ns);
    return {.config = config_,
            .missing = static_cast<std::uint64_t>(static_cast<Tokens>(config_.size) - tokens_),
            .burst = burst_,
            .remainder = remainder_};
  }
  /// Goes on from a state of the same config. False, and nothing done, where it cannot be one.
  bool restore(const TokenBucketState& state, std::uint64_t now_ns) {
    const Tokens tokens = static_cast<Tokens>(config_.size) - state.missing;
    if (tokens < -static_cast<Tokens>(kDebtMax) || state.burst > config_.burst ||
        state.remainder >= config_.refill_ns) {
      return false;
    }
    tokens_ = tokens;
    burst_ = state.burst;
    remainder_ = state.remainder;
    filled_ns_ = now_ns;
    return true;
  }

 private:
  __extension__ using Tokens = __int128;

  void refill(std::uint64_t now_ns) {
    const std::uint64_t elapsed = now_ns - std::exchange(filled_ns_, now_ns);
    const Tokens parts = static_cast<Tokens>(elapsed) * config_.size + remainder_;
    tokens_ += parts / config_.refill_ns;
    remainder_ = static_cast<std::uint64_t>(parts % config_.refill_ns);
    if (tokens_ >= static_cast<Tokens>(config_.size)) {
      tokens_ = static_cast<Tokens>(config_.size);
      remainder_ = 0;
    }
  }

  /// Rounded up.
  std::uint64_t time_until(Tokens wanted) const {
    const Tokens parts = (wanted - tokens_) * config_.refill_ns - remainder_;
    return static_cast<std::uint64_t>((parts + config_.size - 1) / config_.size);
  }

  TokenBucketConfig config_;
  Tokens tokens_;                // below 0: in debt
  std::uint64_t burst_;          // left
  std::uint64_t filled_ns_;      // when tokens_ was right
  std::uint64_t remainder_ = 0;  // of a token, in parts of refill_ns
};

}  // namespace vireo
