// SPDX-License-Identifier: Apache-2.0
// What KVM keeps of a vCPU, of the interrupt controllers and of the clock: taken for a snapshot or
// a reset, and put back. The tables in kvm_state.cc say by which ioctl each item goes, in which
// order, and why. KVM's structures are kept as they are: their layout is the kernel's promise.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/kvm/uapi.h"
#include "src/kvm/vm.h"

namespace vireo::arch {

template <typename Structure>
using BytesOf = std::array<std::byte, sizeof(Structure)>;

struct MsrState {
  std::uint32_t index = 0;
  std::uint64_t value = 0;
  void fields(auto& ar) { ar(index, value); }
};

struct VcpuState {
  static constexpr std::string_view kTag = "x86-vcpu";
  static constexpr std::uint32_t kVersion = 1;
  static constexpr std::size_t kXsaveMax = std::size_t{64} << 10;
  static constexpr std::size_t kMsrsMax = 4096;

  BytesOf<kvm_sregs2> sregs = {};
  BytesOf<kvm_regs> regs = {};
  BytesOf<kvm_xcrs> xcrs = {};
  std::vector<std::byte> xsave;  // as long as KVM_CAP_XSAVE2 says
  BytesOf<kvm_debugregs> debugregs = {};
  BytesOf<kvm_lapic_state> lapic = {};
  BytesOf<kvm_vcpu_events> events = {};
  BytesOf<kvm_mp_state> mp_state = {};
  std::vector<MsrState> msrs;   // of KVM_GET_MSR_INDEX_LIST those that the vCPU has
  std::uint64_t tsc = 0;        // IA32_TSC, …
  std::uint64_t tsc_at_ns = 0;  // … and the host's CLOCK_REALTIME as it was read
  std::uint32_t tsc_khz = 0;    // its rate; 0: KVM does not tell

  void fields(auto& ar) {
    ar(sregs, regs, xcrs, debugregs, lapic, events, mp_state, tsc, tsc_at_ns, tsc_khz);
    ar.list(xsave, kXsaveMax);
    ar.list(msrs, kMsrsMax);
  }
};

/// What every vCPU shows, but for the numbers that differ between them.
struct CpuidState {
  static constexpr std::string_view kTag = "x86-cpuid";
  static constexpr std::uint32_t kVersion = 1;
  static constexpr std::size_t kEntriesMax = 1024;

  struct Entry {
    BytesOf<kvm_cpuid_entry2> bytes = {};
    void fields(auto& ar) { ar(bytes); }
  };
  std::vector<Entry> entries;

  void fields(auto& ar) { ar.list(entries, kEntriesMax); }
};

struct MachineKvmState {
  static constexpr std::string_view kTag = "x86-machine";
  static constexpr std::uint32_t kVersion = 1;

  std::array<BytesOf<kvm_irqchip>, 3> irqchips = {};  // both 8259s and the IOAPIC
  std::uint64_t clock_ns = 0;                         // kvmclock, …
  std::uint64_t clock_at_ns = 0;  // … and the host's CLOCK_REALTIME as it was read

  void fields(auto& ar) { ar(irqchips, clock_ns, clock_at_ns); }
};

/// While the vCPU does not run, and has no port or MMIO access pending. `msrs` is msr_indices().
Result<VcpuState> capture_vcpu(const KvmVm& vm, int vcpu_fd, std::span<const std::uint32_t> msrs);
/// As it was captured, but for CPUID, which the vCPU has already, and for IA32_TSC, which is what
/// `tsc` says. An error names the item that KVM refuses.
enum class TscMode : std::uint8_t { kKeep, kContinue };
Result<> put_vcpu(const KvmVm& vm, int vcpu_fd, const VcpuState& state, TscMode tsc);

Result<MachineKvmState> capture_machine(const KvmVm& vm);
Result<> put_interrupt_controllers(const KvmVm& vm, const MachineKvmState& state);
/// kvmclock goes on, the time that has passed since added.
Result<> put_clock(const KvmVm& vm, const MachineKvmState& state);

/// Numbers of the model-specific registers that KVM keeps for a vCPU.
Result<std::vector<std::uint32_t>> msr_indices(int kvm_fd);

}  // namespace vireo::arch
