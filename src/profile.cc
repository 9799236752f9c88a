// SPDX-License-Identifier: Apache-2.0
#include "src/profile.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "src/exit_report.h"

namespace vireo {

void Profile::end_phase() {
  const std::scoped_lock lock(mutex_);
  // Counting walks all of memory, and a guest may mark as often as it likes.
  if (resident_pages_.size() < kPhasesMax) {
    resident_pages_.push_back(memory_.resident_pages());
  }
}

Result<std::string> Profile::to_json(std::span<const std::unique_ptr<Vcpu>> vcpus,
                                     const KvmStats& vm_stats, const Bus& ports, const Bus& mmio) {
  end_phase();
  TRY_ASSIGN(nlohmann::ordered_json vcpu_list, vcpus_json(vcpus, ports, mmio));
  TRY_ASSIGN(nlohmann::ordered_json vm_counters, counters_json(vm_stats));
  nlohmann::ordered_json phases = nlohmann::ordered_json::array();
  std::uint64_t before = 0;
  for (std::size_t phase = 0; phase < resident_pages_.size(); ++phase) {
    const std::uint64_t pages = resident_pages_[phase];
    // Pages can become fewer as well, where the guest's memory was taken back.
    phases.push_back({{"phase", phase}, {"pages_touched", pages - std::min(pages, before)}});
    before = pages;
  }
  nlohmann::ordered_json steps = nlohmann::ordered_json::array();
  for (const GuestStep& step : steps_.steps()) {
    steps.push_back({{"name", step.name}, {"duration_us", step.duration_us}});
  }
  const nlohmann::ordered_json root = {{"version", 1},
                                       {"vcpus", std::move(vcpu_list)},
                                       {"kvm", std::move(vm_counters)},
                                       {"phases", std::move(phases)},
                                       {"guest_steps", std::move(steps)}};
  return root.dump(2) + "\n";
}

}  // namespace vireo
