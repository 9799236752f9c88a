// SPDX-License-Identifier: Apache-2.0
// What a reset puts back: the state that KVM gave vCPUs and interrupt controllers at first.
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "arch/arch.h"
#include "arch/x86_64/kvm_state.h"

namespace vireo::arch {

namespace {

// A message-signalled interrupt (Intel SDM vol. 3 §11.11): the destination in bits 12…19 of the
// address, the delivery mode in bits 8…10 of the data.
constexpr std::uint64_t kMsiAddress = 0xfee00000;
constexpr unsigned kMsiDestinationShift = 12;
constexpr std::uint32_t kMsiDeliveryNmi = 4U << 8;

class X86ResetState final : public ResetState {
 public:
  std::vector<VcpuState> vcpus;
  MachineKvmState machine;
};

}  // namespace

Result<std::unique_ptr<ResetState>> capture_reset_state(const KvmVm& vm,
                                                        std::span<const int> vcpu_fds) {
  auto state = std::make_unique<X86ResetState>();
  TRY_ASSIGN(const std::vector<std::uint32_t> msrs, msr_indices(vm.kvm_fd()));
  for (const int fd : vcpu_fds) {
    TRY_ASSIGN(VcpuState vcpu, capture_vcpu(vm, fd, msrs));
    state->vcpus.push_back(std::move(vcpu));
  }
  TRY_ASSIGN(state->machine, capture_machine(vm));
  return std::unique_ptr<ResetState>(std::move(state));
}

Result<> restore_reset_state(const KvmVm& vm, std::span<const int> vcpu_fds,
                             const ResetState& state) {
  // An architecture's VMs have no other.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-static-cast-downcast)
  const auto& x86 = static_cast<const X86ResetState&>(state);
  TRY(put_interrupt_controllers(vm, x86.machine));
  for (std::size_t i = 0; i < vcpu_fds.size(); ++i) {
    // Time goes on over a reset, and differs between vCPUs when it is set one after the other.
    TRY(put_vcpu(vm, vcpu_fds[i], x86.vcpus[i], TscMode::kKeep));
  }
  return {};
}

Result<> inject_nmi(const KvmVm& vm, std::uint32_t id) {
  return vm.signal_msi(kMsiAddress | std::uint64_t{id} << kMsiDestinationShift, kMsiDeliveryNmi);
}

}  // namespace vireo::arch
