// SPDX-License-Identifier: Apache-2.0
#include "src/profile.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/kvm/uapi.h"

namespace vireo {

namespace {

std::string reason_name(std::uint32_t reason) {
  switch (reason) {
    case KVM_EXIT_IO:
      return "io";
    case KVM_EXIT_MMIO:
      return "mmio";
    case KVM_EXIT_X86_RDMSR:
      return "rdmsr";
    case KVM_EXIT_X86_WRMSR:
      return "wrmsr";
    case KVM_EXIT_INTR:
      return "intr";
    case KVM_EXIT_SHUTDOWN:
      return "shutdown";
    case KVM_EXIT_INTERNAL_ERROR:
      return "internal_error";
    default:
      return fmt::format("kvm_exit_{}", reason);
  }
}

nlohmann::ordered_json record_json(const ExitRecord& record, const Bus& ports, const Bus& mmio) {
  nlohmann::ordered_json json = {{"phase", record.phase}, {"reason", reason_name(record.reason)}};
  const bool is_access = record.reason == KVM_EXIT_IO || record.reason == KVM_EXIT_MMIO;
  if (is_access || record.reason == KVM_EXIT_X86_RDMSR || record.reason == KVM_EXIT_X86_WRMSR) {
    if (record.detail == ExitStats::kOther) {
      json["address"] = "other";
    } else {
      json["address"] = fmt::format("{:#x}", record.detail);
    }
    json["direction"] = record.write ? "write" : "read";
  }
  if (is_access && record.detail != ExitStats::kOther) {
    const Bus& bus = record.reason == KVM_EXIT_IO ? ports : mmio;
    const Bus::Entry* const entry = bus.find(record.detail, 1);
    json["device"] = entry != nullptr ? entry->name : "none";
  }
  json["count"] = record.count;
  json["handling_us"] = record.handling_ns / 1000;
  return json;
}

nlohmann::ordered_json exits_json(const ExitStats& stats, const Bus& ports, const Bus& mmio) {
  std::vector<ExitRecord> records = stats.records();
  std::ranges::sort(records, [](const ExitRecord& left, const ExitRecord& right) {
    return left.phase != right.phase ? left.phase < right.phase : left.count > right.count;
  });
  nlohmann::ordered_json exits = nlohmann::ordered_json::array();
  for (const ExitRecord& record : records) {
    exits.push_back(record_json(record, ports, mmio));
  }
  return exits;
}

Result<nlohmann::ordered_json> counters_json(const KvmStats& stats) {
  TRY_ASSIGN(const std::vector<KvmCounter> counters, stats.read());
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const KvmCounter& counter : counters) {
    json[counter.name] = counter.value;
  }
  return json;
}

}  // namespace

void Profile::end_phase() {
  const std::scoped_lock lock(mutex_);
  // Counting walks all of memory, and a guest may mark as often as it likes.
  if (resident_pages_.size() < kPhasesMax) {
    resident_pages_.push_back(memory_.resident_pages());
  }
}

Result<std::string> Profile::to_json(std::span<const std::unique_ptr<Vcpu>> vcpus, const Bus& ports,
                                     const Bus& mmio) {
  end_phase();
  nlohmann::ordered_json vcpu_list = nlohmann::ordered_json::array();
  for (const auto& vcpu : vcpus) {
    const ExitStats& stats = *vcpu->exit_stats();
    TRY_ASSIGN(nlohmann::ordered_json counters, counters_json(vcpu->kvm_stats()));
    vcpu_list.push_back({{"vcpu", vcpu->index()},
                         {"in_kvm_run_us", stats.run_ns() / 1000},
                         {"exits", exits_json(stats, ports, mmio)},
                         {"kvm", std::move(counters)}});
  }
  TRY_ASSIGN(nlohmann::ordered_json vm_counters, counters_json(vm_stats_));
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
