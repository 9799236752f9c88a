// SPDX-License-Identifier: Apache-2.0
#include "src/io/rate_limiter.h"

#include <array>
#include <cstdint>

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
