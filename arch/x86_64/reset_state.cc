// SPDX-License-Identifier: Apache-2.0
// What a reset puts back: the state that KVM gave vCPUs and interrupt controllers at first.
#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "arch/arch.h"
#include "arch/x86_64/kvm_entries.h"
#include "src/kvm/uapi.h"

namespace vireo::arch {

namespace {

constexpr std::uint32_t kMsrTsc = 0x10;

// A message-signalled interrupt (Intel SDM vol. 3 §11.11): the destination in bits 12…19 of the
// address, the delivery mode in bits 8…10 of the data.
constexpr std::uint64_t kMsiAddress = 0xfee00000;
constexpr unsigned kMsiDestinationShift = 12;
constexpr std::uint32_t kMsiDeliveryNmi = 4U << 8;

struct VcpuState {
  kvm_regs regs = {};
  kvm_sregs sregs = {};
  std::array<std::byte, sizeof(kvm_xsave)> xsave = {};
  kvm_xcrs xcrs = {};
  kvm_debugregs debugregs = {};
  kvm_lapic_state lapic = {};
  kvm_vcpu_events events = {};
  kvm_mp_state mp_state = {};
  std::vector<kvm_msr_entry> msrs;
};

class X86ResetState final : public ResetState {
 public:
  std::vector<VcpuState> vcpus;
  std::array<kvm_irqchip, 3> irqchips = {};  // both PICs and the IOAPIC
};

/// Numbers of the model-specific registers that KVM keeps for a vCPU.
Result<std::vector<std::uint32_t>> msr_indices(int kvm_fd) {
  std::uint32_t count = 0;
  ::ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &count);  // E2BIG, and how many there are
  std::vector<std::uint32_t> buffer(1 + count);
  buffer[0] = count;
  TRY(try_ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, buffer.data(), "KVM_GET_MSR_INDEX_LIST"));
  return std::vector<std::uint32_t>(buffer.begin() + 1, buffer.end());
}

/// One register at a time: a list stops at the first that this vCPU does not have.
bool access_msr(int vcpu_fd, unsigned long request, kvm_msr_entry& entry) {
  MsrBuffer one(1);
  one.header().nmsrs = 1;
  one.entries()[0] = entry;
  const bool done = ::ioctl(vcpu_fd, request, &one.header()) == 1;
  entry = one.entries()[0];
  return done;
}

Result<VcpuState> capture(int fd, std::span<const std::uint32_t> msrs) {
  VcpuState state;
  TRY(try_ioctl(fd, KVM_GET_REGS, &state.regs, "KVM_GET_REGS"));
  TRY(try_ioctl(fd, KVM_GET_SREGS, &state.sregs, "KVM_GET_SREGS"));
  TRY(try_ioctl(fd, KVM_GET_XSAVE, state.xsave.data(), "KVM_GET_XSAVE"));
  TRY(try_ioctl(fd, KVM_GET_XCRS, &state.xcrs, "KVM_GET_XCRS"));
  TRY(try_ioctl(fd, KVM_GET_DEBUGREGS, &state.debugregs, "KVM_GET_DEBUGREGS"));
  TRY(try_ioctl(fd, KVM_GET_LAPIC, &state.lapic, "KVM_GET_LAPIC"));
  TRY(try_ioctl(fd, KVM_GET_VCPU_EVENTS, &state.events, "KVM_GET_VCPU_EVENTS"));
  TRY(try_ioctl(fd, KVM_GET_MP_STATE, &state.mp_state, "KVM_GET_MP_STATE"));
  for (const std::uint32_t index : msrs) {
    kvm_msr_entry entry = {.index = index, .reserved = 0, .data = 0};
    // Time goes on over a reset, and differs between vCPUs when it is set one after the other.
    if (index != kMsrTsc && access_msr(fd, KVM_GET_MSRS, entry)) {
      state.msrs.push_back(entry);
    }
  }
  return state;
}

Result<> restore(int fd, VcpuState state) {
  // The local APIC's base and mode come with the special registers, so they are first.
  TRY(try_ioctl(fd, KVM_SET_SREGS, &state.sregs, "KVM_SET_SREGS"));
  TRY(try_ioctl(fd, KVM_SET_REGS, &state.regs, "KVM_SET_REGS"));
  TRY(try_ioctl(fd, KVM_SET_XCRS, &state.xcrs, "KVM_SET_XCRS"));
  TRY(try_ioctl(fd, KVM_SET_XSAVE, state.xsave.data(), "KVM_SET_XSAVE"));
  TRY(try_ioctl(fd, KVM_SET_DEBUGREGS, &state.debugregs, "KVM_SET_DEBUGREGS"));
  for (kvm_msr_entry& entry : state.msrs) {
    // Those that KVM only shows cannot be set, and have not changed.
    access_msr(fd, KVM_SET_MSRS, entry);
  }
  TRY(try_ioctl(fd, KVM_SET_LAPIC, &state.lapic, "KVM_SET_LAPIC"));
  TRY(try_ioctl(fd, KVM_SET_VCPU_EVENTS, &state.events, "KVM_SET_VCPU_EVENTS"));
  TRY(try_ioctl(fd, KVM_SET_MP_STATE, &state.mp_state, "KVM_SET_MP_STATE"));
  return {};
}

}  // namespace

Result<std::unique_ptr<ResetState>> capture_reset_state(const KvmVm& vm,
                                                        std::span<const int> vcpu_fds) {
  auto state = std::make_unique<X86ResetState>();
  TRY_ASSIGN(const std::vector<std::uint32_t> msrs, msr_indices(vm.kvm_fd()));
  for (const int fd : vcpu_fds) {
    TRY_ASSIGN(VcpuState vcpu, capture(fd, msrs));
    state->vcpus.push_back(std::move(vcpu));
  }
  std::uint32_t id = 0;
  for (kvm_irqchip& chip : state->irqchips) {
    chip.chip_id = id++;
    TRY(try_ioctl(vm.fd(), KVM_GET_IRQCHIP, &chip, "KVM_GET_IRQCHIP"));
  }
  return std::unique_ptr<ResetState>(std::move(state));
}

Result<> restore_reset_state(const KvmVm& vm, std::span<const int> vcpu_fds,
                             const ResetState& state) {
  // An architecture's VMs have no other.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-static-cast-downcast)
  const auto& x86 = static_cast<const X86ResetState&>(state);
  for (kvm_irqchip chip : x86.irqchips) {
    TRY(try_ioctl(vm.fd(), KVM_SET_IRQCHIP, &chip, "KVM_SET_IRQCHIP"));
  }
  for (std::size_t i = 0; i < vcpu_fds.size(); ++i) {
    TRY(restore(vcpu_fds[i], x86.vcpus[i]));
  }
  return {};
}

Result<> inject_nmi(const KvmVm& vm, std::uint32_t id) {
  return vm.signal_msi(kMsiAddress | std::uint64_t{id} << kMsiDestinationShift, kMsiDeliveryNmi);
}

}  // namespace vireo::arch
