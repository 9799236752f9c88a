// SPDX-License-Identifier: Apache-2.0
// Calendar time in UTC. gmtime_r(3) reads /etc/localtime at its first call, whoever makes it: here
// nothing is opened, so that it may be called on any thread of a machine that has been sealed.
#pragma once

#include <chrono>
#include <ctime>

namespace vireo {

inline std::tm utc_time(std::time_t now) {
  const std::chrono::sys_seconds moment{std::chrono::seconds(now)};
  const auto day = std::chrono::floor<std::chrono::days>(moment);
  const std::chrono::year_month_day date(day);
  const std::chrono::hh_mm_ss time(moment - day);
  std::tm utc = {};
  utc.tm_year = static_cast<int>(date.year()) - 1900;
  utc.tm_mon = static_cast<int>(static_cast<unsigned>(date.month())) - 1;
  utc.tm_mday = static_cast<int>(static_cast<unsigned>(date.day()));
  utc.tm_wday = static_cast<int>(std::chrono::weekday(day).c_encoding());
  utc.tm_hour = static_cast<int>(time.hours().count());
  utc.tm_min = static_cast<int>(time.minutes().count());
  utc.tm_sec = static_cast<int>(time.seconds().count());
  return utc;
}

}  // namespace vireo
