// SPDX-License-Identifier: Apache-2.0
// The sections of a snapshot that KVM's state is in.
#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "arch/arch.h"
#include "arch/x86_64/cpuid.h"
#include "arch/x86_64/kvm_state.h"
#include "arch/x86_64/vcpu_setup.h"

namespace vireo::arch {

namespace {

CpuidState state_of(const CpuidTable& table) {
  CpuidState state;
  for (const kvm_cpuid_entry2& entry : table) {
    state.entries.push_back({.bytes = std::bit_cast<BytesOf<kvm_cpuid_entry2>>(entry)});
  }
  return state;
}

CpuidTable table_of(const CpuidState& state) {
  CpuidTable table;
  for (const CpuidState::Entry& entry : state.entries) {
    table.push_back(std::bit_cast<kvm_cpuid_entry2>(entry.bytes));
  }
  return table;
}

/// What the guest would miss on this host.
Result<> check_features(const CpuidTable& guest, const CpuidTable& host) {
  std::string names;
  for (const std::string& name : missing_features(guest, host)) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  }
  if (!names.empty()) {
    return fail(ErrorCode::kBadInput,
                fmt::format("the guest was started on a processor with {}, which this host's KVM "
                            "does not offer; wants such a host, or --cpu-mask with their names "
                            "where the guest does not use them; a VM that is to move starts "
                            "without them (machine.cpu_features)",
                            names));
  }
  return {};
}

/// KVM's own tolerance: what differs less is the same clock, measured twice.
constexpr std::uint64_t kTscToleranceParts = 4000;

Result<> match_tsc_rate(const KvmVm& vm, int vcpu_fd, std::uint32_t wanted_khz) {
  const auto host_khz =
      static_cast<std::uint32_t>(std::max(::ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0UL), 0));
  const std::uint32_t difference =
      host_khz > wanted_khz ? host_khz - wanted_khz : wanted_khz - host_khz;
  if (wanted_khz == 0 || difference <= wanted_khz / kTscToleranceParts) {
    return {};
  }
  if (vm.check_extension(KVM_CAP_TSC_CONTROL) <= 0) {
    return fail(ErrorCode::kBadInput,
                fmt::format("the guest's TSC counts {} kHz, this host's {}, and its KVM cannot "
                            "scale it",
                            wanted_khz, host_khz));
  }
  TRY(try_ioctl(vcpu_fd, KVM_SET_TSC_KHZ, static_cast<unsigned long>(wanted_khz),
                "KVM_SET_TSC_KHZ"));
  return {};
}

}  // namespace

Result<> save_kvm_state(const KvmVm& vm, std::span<const int> vcpu_fds, const CpuModel& model,
                        SnapshotWriter& writer) {
  if (shows_nested_virtualization(table_of(model))) {
    return fail(ErrorCode::kConfig,
                "machine.cpu_features: a guest with nested virtualization (+vmx, +svm) cannot be "
                "saved; start it without");
  }
  writer.add(0, state_of(table_of(model)));
  TRY_ASSIGN(const std::vector<std::uint32_t> msrs, msr_indices(vm.kvm_fd()));
  for (std::uint32_t index = 0; index < vcpu_fds.size(); ++index) {
    TRY_ASSIGN(VcpuState state, capture_vcpu(vm, vcpu_fds[index], msrs));
    writer.add(index, std::move(state));
  }
  TRY_ASSIGN(MachineKvmState state, capture_machine(vm));
  writer.add(0, std::move(state));
  return {};
}

Result<std::unique_ptr<CpuModel>> restore_cpu_model(const CpuModel& host, const CpuConfig& config,
                                                    SnapshotReader& reader) {
  TRY_ASSIGN(const CpuidState state, reader.take<CpuidState>(0));
  CpuidTable table = table_of(state);
  mask_features(table, config.features);
  TRY(check_features(table, table_of(host)));
  return make_cpu_model(std::move(table), config.topology);
}

Result<> restore_vcpu(const KvmVm& vm, int vcpu_fd, const CpuModel& model, std::uint32_t id,
                      std::uint32_t index, SnapshotReader& reader) {
  TRY_ASSIGN(const VcpuState state, reader.take<VcpuState>(index));
  TRY(match_tsc_rate(vm, vcpu_fd, state.tsc_khz));
  Result<> put = set_cpuid(vcpu_fd, model, id);
  if (put) {
    put = put_vcpu(vm, vcpu_fd, state, TscMode::kContinue);
  }
  return put ? Result<>() : Result<>(bad_section<VcpuState>(index, put.error().message()));
}

Result<> restore_kvm_machine(const KvmVm& vm, SnapshotReader& reader) {
  TRY_ASSIGN(const MachineKvmState state, reader.take<MachineKvmState>(0));
  Result<> put = put_interrupt_controllers(vm, state);
  if (put) {
    put = put_clock(vm, state);
  }
  return put ? Result<>() : Result<>(bad_section<MachineKvmState>(0, put.error().message()));
}

}  // namespace vireo::arch
