// SPDX-License-Identifier: Apache-2.0
#include "src/exit_report.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/kvm/uapi.h"

namespace vireo {

std::string exit_reason_name(std::uint32_t reason) {
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

namespace {

nlohmann::ordered_json record_json(const ExitRecord& record, const Bus& ports, const Bus& mmio) {
  nlohmann::ordered_json json = {{"phase", record.phase},
                                 {"reason", exit_reason_name(record.reason)}};
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

}  // namespace

Result<nlohmann::ordered_json> counters_json(const KvmStats& stats) {
  TRY_ASSIGN(const std::vector<KvmCounter> counters, stats.read());
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const KvmCounter& counter : counters) {
    json[counter.name] = counter.value;
  }
  return json;
}

Result<nlohmann::ordered_json> vcpus_json(std::span<const std::unique_ptr<Vcpu>> vcpus,
                                          const Bus& ports, const Bus& mmio) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const auto& vcpu : vcpus) {
    const ExitStats& stats = *vcpu->exit_stats();
    TRY_ASSIGN(nlohmann::ordered_json counters, counters_json(vcpu->kvm_stats()));
    list.push_back({{"vcpu", vcpu->index()},
                    {"in_kvm_run_us", stats.run_ns() / 1000},
                    {"exits", exits_json(stats, ports, mmio)},
                    {"kvm", std::move(counters)}});
  }
  return list;
}

}  // namespace vireo
