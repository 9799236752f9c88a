// SPDX-License-Identifier: Apache-2.0
#include "src/base/utc.h"

#include "tests/support/catch.h"

namespace vireo {
namespace {

TEST_CASE("utc: says what gmtime says, from 1900 to 2200") {
  constexpr std::time_t kFirst = -2208988800;
  constexpr std::time_t kLast = 7258118400;
  constexpr std::time_t kStep = 86400 * 3 - 7919;  // meets each day of the month and time of day
  for (std::time_t now = kFirst; now < kLast; now += kStep) {
    std::tm expected = {};
    REQUIRE(::gmtime_r(&now, &expected) != nullptr);
    const std::tm time = utc_time(now);
    INFO(now);
    REQUIRE(time.tm_year == expected.tm_year);
    REQUIRE(time.tm_mon == expected.tm_mon);
    REQUIRE(time.tm_mday == expected.tm_mday);
    REQUIRE(time.tm_wday == expected.tm_wday);
    REQUIRE(time.tm_hour == expected.tm_hour);
    REQUIRE(time.tm_min == expected.tm_min);
    REQUIRE(time.tm_sec == expected.tm_sec);
  }
}

}  // namespace
}  // namespace vireo
