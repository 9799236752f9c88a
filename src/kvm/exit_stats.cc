// SPDX-License-Identifier: Apache-2.0
#include "src/kvm/exit_stats.h"

#include <algorithm>
#include <iterator>

namespace vireo {

namespace {

std::uint64_t hash(std::uint32_t phase, std::uint32_t reason, bool write, std::uint64_t detail) {
  const std::uint64_t key = detail ^ (std::uint64_t{reason} << 40) ^ (std::uint64_t{phase} << 50) ^
                            (std::uint64_t{write} << 63);
  // Fibonacci hashing: the golden ratio spreads neighbouring ports over the table.
  return (key * 0x9e3779b97f4a7c15ULL) >> 32;
}

}  // namespace

void ExitStats::add(std::uint32_t phase, std::uint32_t reason, bool write, std::uint64_t detail,
                    std::uint64_t handling_ns) {
  const std::scoped_lock lock(mutex_);
  // The last quarter stays free, which bounds the probing and leaves room for the summed records.
  if (used_ >= kSlots * 3 / 4) {
    const bool known = std::ranges::any_of(table_, [&](const ExitRecord& record) {
      return record.count > 0 && record.phase == phase && record.reason == reason &&
             record.write == write && record.detail == detail;
    });
    if (!known) {
      phase = 0;
      detail = kOther;
    }
  }
  for (std::uint64_t i = hash(phase, reason, write, detail);; ++i) {
    ExitRecord& record = table_[i & (kSlots - 1)];
    if (record.count == 0) {
      record = {.phase = phase, .reason = reason, .write = write, .detail = detail};
      ++used_;
    } else if (record.phase != phase || record.reason != reason || record.write != write ||
               record.detail != detail) {
      continue;
    }
    ++record.count;
    record.handling_ns += handling_ns;
    return;
  }
}

std::vector<ExitRecord> ExitStats::records() const {
  const std::scoped_lock lock(mutex_);
  std::vector<ExitRecord> records;
  std::ranges::copy_if(table_, std::back_inserter(records),
                       [](const ExitRecord& record) { return record.count > 0; });
  return records;
}

}  // namespace vireo
