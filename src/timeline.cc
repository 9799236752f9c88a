// SPDX-License-Identifier: Apache-2.0
#include "src/timeline.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/base/log.h"

namespace vireo {

namespace {

constexpr std::array kStepNames = {
    "process_start", "config_parsed", "kvm_ready",   "memory_ready", "kernel_loaded",
    "devices_ready", "load",          "first_entry", "ready",        "end"};

}  // namespace

Timeline::Moment Timeline::now() {
  timespec cpu = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  return {.at_ns = monotonic_ns(),
          .cpu_ns = static_cast<std::uint64_t>(cpu.tv_sec) * 1'000'000'000 +
                    static_cast<std::uint64_t>(cpu.tv_nsec)};
}

void Timeline::record(Step step) {
  steps_.at(std::to_underlying(step)) = now();
}

bool Timeline::reached(Step step) const {
  return steps_.at(std::to_underlying(step)).at_ns != 0;
}

void Timeline::record_mark(std::uint8_t number) {
  const std::size_t index = mark_count_.fetch_add(1, std::memory_order_relaxed);
  if (index >= kMarksMax) {
    return;
  }
  Mark& mark = marks_[index];
  mark.moment = now();
  mark.number = number;
  mark.valid.store(true, std::memory_order_release);
}

std::string Timeline::to_json() const {
  struct Named {
    std::string name;
    Moment moment;
  };
  std::vector<Named> reached;
  for (std::size_t i = 0; i < kStepCount; ++i) {
    if (steps_[i].at_ns != 0) {
      reached.push_back({kStepNames.at(i), steps_[i]});
    }
  }
  for (const Mark& mark : marks_) {
    if (mark.valid.load(std::memory_order_acquire)) {
      reached.push_back({fmt::format("guest_mark:{}", mark.number), mark.moment});
    }
  }
  std::ranges::stable_sort(reached, {}, [](const Named& step) { return step.moment.at_ns; });
  nlohmann::ordered_json steps = nlohmann::ordered_json::array();
  for (const Named& step : reached) {
    steps.push_back({{"name", step.name},
                     {"at_us", (step.moment.at_ns - start_ns()) / 1000},
                     {"cpu_us", step.moment.cpu_ns / 1000}});
  }
  const nlohmann::ordered_json root = {{"version", 1}, {"steps", steps}};
  return root.dump(2) + "\n";
}

}  // namespace vireo
