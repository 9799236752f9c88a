// SPDX-License-Identifier: Apache-2.0
#include "src/io/rate_limiter.h"

#include <array>
#include <cstdint>
#include <utility>

#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMillisecond = 1'000'000;
constexpr std::uint64_t kSecond = 1'000 * kMillisecond;

TEST_CASE("token bucket: full at first, then as fast as it fills") {
  TokenBucket bucket({.size = 100, .refill_ns = kSecond}, 0);
  CHECK(bucket.take(60, 0) == 0);
  CHECK(bucket.take(40, 0) == 0);
  CHECK(bucket.take(1, 0) == 10 * kMillisecond);
  CHECK(bucket.take(10, 99 * kMillisecond) == kMillisecond);
  CHECK(bucket.take(10, 100 * kMillisecond) == 0);
  // Never more than its size, however long nobody asks.
  CHECK(bucket.take(100, 100 * kSecond) == 0);
  CHECK(bucket.take(1, 100 * kSecond) != 0);
}

TEST_CASE("token bucket: what was told to wait has its tokens then, and not before") {
  for (const std::uint64_t size :
       std::to_array<std::uint64_t>({1, 3, 7, 1'000'003, std::uint64_t{1} << 50})) {
    for (const std::uint64_t refill_ns :
         std::to_array<std::uint64_t>({1, 7, kMillisecond, 3'600 * kSecond})) {
      TokenBucket bucket({.size = size, .refill_ns = refill_ns}, 0);
      REQUIRE(bucket.take(size, 0) == 0);
      const std::uint64_t wait = bucket.take(size / 2 + 1, 0);
      REQUIRE(wait > 0);
      INFO(size << " in " << refill_ns << ": " << wait);
      if (wait > 1) {
        CHECK(bucket.take(size / 2 + 1, wait - 1) != 0);
      }
      CHECK(bucket.take(size / 2 + 1, wait) == 0);
    }
  }
}

TEST_CASE("token bucket: no part of a token is lost between many small takes") {
  TokenBucket bucket({.size = 1000, .refill_ns = kSecond}, 0);
  REQUIRE(bucket.take(1000, 0) == 0);
  std::uint64_t taken = 0;
  // Each step is worth 0.7 tokens.
  for (std::uint64_t now = 0; now < 10 * kSecond; now += 700'000) {
    taken += bucket.take(1, now) == 0 ? 1U : 0U;
  }
  CHECK(taken >= 9'998);
  CHECK(taken <= 10'000);
}

TEST_CASE("token bucket: a burst lies on top, once") {
  TokenBucket bucket({.size = 100, .refill_ns = kSecond, .burst = 50}, 0);
  CHECK(bucket.take(150, 0) == 0);
  CHECK(bucket.take(1, 0) != 0);
  CHECK(bucket.take(100, 60 * kSecond) == 0);
  CHECK(bucket.take(50, 60 * kSecond) != 0);
}

TEST_CASE("token bucket: what is larger than the bucket goes through, and is paid for") {
  TokenBucket bucket({.size = 100, .refill_ns = kSecond}, 0);
  CHECK(bucket.take(350, 0) == 0);
  // 250 in debt: ten tokens more are there after 2.6 s.
  CHECK(bucket.take(10, 0) == 2'600 * kMillisecond);
  CHECK(bucket.take(350, kSecond) != 0);
  CHECK(bucket.take(10, 2'600 * kMillisecond) == 0);
}

TEST_CASE("rate limiter: both buckets must have enough, and a refusal takes from none") {
  RateLimiter limiter({.bandwidth = TokenBucketConfig{.size = 1000, .refill_ns = kSecond},
                       .ops = TokenBucketConfig{.size = 3, .refill_ns = kSecond}});
  CHECK(limiter.take(900, 0) == 0);
  CHECK(limiter.take(200, 0) == 100 * kMillisecond);
  CHECK(limiter.take(50, 0) == 0);
  CHECK(limiter.take(50, 0) == 0);
  CHECK(limiter.take(0, 0) > 300 * kMillisecond);
}

TEST_CASE("rate limiter: new limits begin full, and what did not change goes on") {
  const TokenBucketConfig ops = {.size = 2, .refill_ns = kSecond};
  RateLimiter limiter({.ops = ops});
  CHECK(limiter.take(1 << 30, 0) == 0);
  CHECK(limiter.take(1, 0) == 0);
  limiter.configure({.bandwidth = TokenBucketConfig{.size = 10, .refill_ns = kSecond}, .ops = ops},
                    0);
  CHECK(limiter.take(1, 0) != 0);
  limiter.configure({.ops = TokenBucketConfig{.size = 5, .refill_ns = kSecond}}, 0);
  for (int i = 0; i < 5; ++i) {
    CHECK(limiter.take(1, 0) == 0);
  }
  CHECK(limiter.take(1, 0) != 0);
  limiter.configure({}, 0);
  CHECK(limiter.take(1, 0) == 0);
}

TEST_CASE("token bucket: its state goes on elsewhere, at another time") {
  const TokenBucketConfig config = {.size = 100, .refill_ns = 7 * kSecond, .burst = 50};
  TokenBucket bucket(config, kSecond);
  CHECK(bucket.take(30, kSecond) == 0);   // of the burst
  CHECK(bucket.take(350, kSecond) == 0);  // and 230 in debt
  // A second is worth 14 tokens and two seventh.
  const TokenBucketState state = bucket.state(2 * kSecond);
  CHECK(state ==
        TokenBucketState{.config = config, .missing = 316, .burst = 0, .remainder = 2 * kSecond});
  TokenBucket other(config, 0);
  REQUIRE(other.restore(state, 100 * kSecond));
  CHECK(other.state(100 * kSecond) == state);
  CHECK(other.take(1, 100 * kSecond) == bucket.take(1, 2 * kSecond));
  const std::uint64_t wait = bucket.take(1, 2 * kSecond);
  CHECK(other.take(1, 100 * kSecond + wait - 1) != 0);
  CHECK(other.take(1, 100 * kSecond + wait) == 0);

  TokenBucket saved(config, 0);
  CHECK(saved.take(20, 0) == 0);
  REQUIRE(other.restore(saved.state(0), kSecond));
  CHECK(other.take(130, kSecond) == 0);
  CHECK(other.take(1, kSecond) != 0);
}

TEST_CASE("token bucket: numbers that no bucket has are refused") {
  const TokenBucketConfig config = {.size = 100, .refill_ns = kSecond, .burst = 50};
  const TokenBucketState good = {
      .config = config, .missing = 100 + TokenBucket::kDebtMax, .burst = 50, .remainder = 0};
  TokenBucket bucket(config, 0);
  for (const auto& [what, number] : {std::pair{&TokenBucketState::missing, good.missing + 1},
                                     {&TokenBucketState::missing, ~std::uint64_t{0}},
                                     {&TokenBucketState::burst, std::uint64_t{51}},
                                     {&TokenBucketState::remainder, kSecond}}) {
    TokenBucketState bad = good;
    bad.*what = number;
    CHECK_FALSE(bucket.restore(bad, 0));
  }
  CHECK(bucket.take(150, 0) == 0);
  CHECK(bucket.restore(good, 0));
  CHECK(bucket.take(51, 0) > 42'949'672 * kSecond);
}

TEST_CASE("rate limiter: a limit that is the same goes on as it was saved, another is full") {
  const TokenBucketConfig ops = {.size = 2, .refill_ns = kSecond};
  const TokenBucketConfig bandwidth = {.size = 1000, .refill_ns = kSecond};
  RateLimiter old({.bandwidth = bandwidth, .ops = ops});
  CHECK(old.take(1000, 0) == 0);
  CHECK(old.take(0, 0) == 0);
  const RateLimiterState state = old.state(0);

  RateLimiter same({.bandwidth = bandwidth, .ops = ops});
  REQUIRE(same.restore(state, kSecond));
  CHECK(same.state(kSecond) == state);
  CHECK(same.take(0, kSecond) == kSecond / 2);
  RateLimiter wider({.bandwidth = bandwidth, .ops = TokenBucketConfig{.size = 3, .refill_ns = 1}});
  REQUIRE(wider.restore(state, 0));
  CHECK(wider.take(0, 0) == 0);
  CHECK(wider.take(10, 0) == kSecond / 100);
  RateLimiter none;
  REQUIRE(none.restore(state, 0));
  CHECK(none.take(5000, 0) == 0);
  CHECK(none.state(0) == RateLimiterState{});

  // One that cannot be leaves both as they are.
  RateLimiterState bad = state;
  bad.ops.remainder = kSecond;
  RateLimiter untouched({.bandwidth = bandwidth, .ops = ops});
  CHECK_FALSE(untouched.restore(bad, 0));
  CHECK(untouched.take(1000, 0) == 0);
}

TEST_CASE("rate limiter: within a thousandth over ten seconds, whatever the requests are") {
  for (const std::uint64_t bytes : {512ULL, 4096ULL, 1ULL << 20, 3ULL << 20}) {
    RateLimiter limiter(
        {.bandwidth = TokenBucketConfig{.size = 1 << 20, .refill_ns = 100 * kMillisecond}});
    std::uint64_t now = 0;
    std::uint64_t sum = 0;
    while (now < 10 * kSecond) {
      const std::uint64_t wait = limiter.take(bytes, now);
      sum += wait == 0 ? bytes : 0;
      now += wait;
    }
    const double expected = 10.0 * (10 << 20) + (1 << 20);  // and the full bucket
    INFO(bytes);
    CHECK(static_cast<double>(sum) > 0.97 * expected);
    CHECK(static_cast<double>(sum) < 1.03 * expected);
  }
}

}  // namespace
}  // namespace vireo
