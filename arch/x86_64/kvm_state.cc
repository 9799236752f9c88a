// SPDX-License-Identifier: Apache-2.0
#include "arch/x86_64/kvm_state.h"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <utility>

#include <fmt/core.h>

#include "arch/x86_64/kvm_entries.h"

namespace vireo::arch {

namespace {

constexpr std::uint32_t kMsrTsc = 0x10;
constexpr std::uint32_t kMsrTscDeadline = 0x6e0;

/// One item of a vCPU's state.
struct Item {
  const char* get_name;
  unsigned long get;
  const char* set_name;
  unsigned long set;
  std::span<std::byte> (*bytes)(VcpuState&);
};

#define VIREO_ITEM(get, set, member)                                                              \
  Item {                                                                                          \
    #get, (get), #set, (set), [](VcpuState& state) { return std::span<std::byte>(state.member); } \
  }

constexpr Item kMpState = VIREO_ITEM(KVM_GET_MP_STATE, KVM_SET_MP_STATE, mp_state);
constexpr Item kRegs = VIREO_ITEM(KVM_GET_REGS, KVM_SET_REGS, regs);
constexpr Item kSregs = VIREO_ITEM(KVM_GET_SREGS2, KVM_SET_SREGS2, sregs);
constexpr Item kXcrs = VIREO_ITEM(KVM_GET_XCRS, KVM_SET_XCRS, xcrs);
constexpr Item kXsave = VIREO_ITEM(KVM_GET_XSAVE2, KVM_SET_XSAVE, xsave);
constexpr Item kDebugregs = VIREO_ITEM(KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, debugregs);
constexpr Item kLapic = VIREO_ITEM(KVM_GET_LAPIC, KVM_SET_LAPIC, lapic);
constexpr Item kEvents = VIREO_ITEM(KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, events);

#undef VIREO_ITEM

/// One step of capture_vcpu() or put_vcpu(): an item, or the model-specific registers.
struct Step {
  const Item* item = nullptr;  // none: the registers
  std::string_view why_here;
};

constexpr auto kCaptureOrder = std::to_array<Step>({
    {&kMpState, "it takes in a pending INIT or SIPI, which changes what comes below"},
    {&kRegs, "no order"},
    {&kSregs, "no order"},
    {&kXcrs, "no order"},
    {&kXsave, "no order"},
    {&kDebugregs, "no order"},
    {&kLapic, "it brings the timer up to date, and with it IA32_TSC_DEADLINE"},
    {nullptr, "after the timer"},
    {&kEvents, "last: all that could inject something is over"},
});

// CPUID is there already: it says which of these there can be.
constexpr auto kPutOrder = std::to_array<Step>({
    {&kSregs, "first: the local APIC's base and mode, and which mode the rest is judged by"},
    {&kRegs, "no order"},
    {&kXcrs, "before XSAVE: which components that may have"},
    {&kXsave, "after XCR0"},
    {&kDebugregs, "no order"},
    {&kLapic, "after the APIC's base; before IA32_TSC_DEADLINE, which only its timer's mode takes"},
    {nullptr, "after the local APIC"},
    {&kEvents, "after all that could inject something of its own"},
    {&kMpState, "last: a vCPU that waits for SIPI keeps waiting"},
});

std::uint64_t realtime_ns() {
  timespec now = {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

/// Since `before`, a time of realtime_ns(); 0 where that is yet to come.
std::uint64_t elapsed_ns(std::uint64_t before) {
  const std::uint64_t now = realtime_ns();
  return now > before ? now - before : 0;
}

/// Size in bytes of a vCPU's XSAVE area.
std::size_t xsave_size(const KvmVm& vm) {
  return std::max<std::size_t>(
      sizeof(kvm_xsave), static_cast<std::size_t>(std::max(vm.check_extension(KVM_CAP_XSAVE2), 0)));
}

/// As many as can be, from the first on: fewer than there are where the one behind them is refused.
Result<std::size_t> access_msrs(int vcpu_fd, unsigned long request, const char* what,
                                std::span<MsrState> msrs) {
  MsrBuffer buffer(msrs.size());
  buffer.header().nmsrs = static_cast<std::uint32_t>(msrs.size());
  for (std::size_t i = 0; i < msrs.size(); ++i) {
    buffer.entries()[i] = {.index = msrs[i].index, .reserved = 0, .data = msrs[i].value};
  }
  TRY_ASSIGN(const int done, try_ioctl(vcpu_fd, request, &buffer.header(), what));
  const auto count = std::min(static_cast<std::size_t>(done), msrs.size());
  for (std::size_t i = 0; i < count; ++i) {
    msrs[i].value = buffer.entries()[i].data;
  }
  return count;
}

/// Those that the vCPU has; a kernel lists more.
Result<> capture_msrs(int vcpu_fd, std::span<const std::uint32_t> indices, VcpuState& state) {
  std::vector<MsrState> wanted;
  for (const std::uint32_t index : indices) {
    if (index != kMsrTsc) {
      wanted.push_back({.index = index});
    }
  }
  std::span<MsrState> rest = wanted;
  while (!rest.empty()) {
    TRY_ASSIGN(const std::size_t done, access_msrs(vcpu_fd, KVM_GET_MSRS, "KVM_GET_MSRS", rest));
    state.msrs.insert(state.msrs.end(), rest.begin(),
                      rest.begin() + static_cast<std::ptrdiff_t>(done));
    rest = rest.subspan(std::min(done + 1, rest.size()));
  }
  MsrState tsc = {.index = kMsrTsc};
  state.tsc_at_ns = realtime_ns();
  TRY_ASSIGN(const std::size_t done,
             access_msrs(vcpu_fd, KVM_GET_MSRS, "KVM_GET_MSRS", std::span(&tsc, 1)));
  if (done != 1) {
    return fail(ErrorCode::kNoKvm, "KVM_GET_MSRS: KVM does not tell IA32_TSC");
  }
  state.tsc = tsc.value;
  return {};
}

Result<> put_msrs(int vcpu_fd, std::span<const MsrState> msrs) {
  std::vector<MsrState> wanted(msrs.begin(), msrs.end());
  std::span<MsrState> rest = wanted;
  while (!rest.empty()) {
    TRY_ASSIGN(const std::size_t done, access_msrs(vcpu_fd, KVM_SET_MSRS, "KVM_SET_MSRS", rest));
    if (done < rest.size()) {
      // Those that KVM only shows cannot be set: they are as they were.
      MsrState present = {.index = rest[done].index};
      TRY_ASSIGN(const std::size_t found,
                 access_msrs(vcpu_fd, KVM_GET_MSRS, "KVM_GET_MSRS", std::span(&present, 1)));
      if (found != 1 || present.value != rest[done].value) {
        return fail(ErrorCode::kBadInput,
                    fmt::format("KVM_SET_MSRS: this host's KVM does not take {:#x} for register "
                                "{:#x}",
                                rest[done].value, rest[done].index));
      }
    }
    rest = rest.subspan(std::min(done + 1, rest.size()));
  }
  return {};
}

/// The TSC and, when it is right, its deadline.
Result<> put_time(int vcpu_fd, const VcpuState& state, TscMode mode) {
  std::vector<MsrState> time;
  if (mode == TscMode::kContinue) {
    // 128 bits: centuries of elapsed time at any rate.
    __extension__ using Wide = unsigned __int128;
    const Wide ticks = Wide{elapsed_ns(state.tsc_at_ns)} * state.tsc_khz / 1'000'000;
    time.push_back({.index = kMsrTsc, .value = state.tsc + static_cast<std::uint64_t>(ticks)});
  }
  const auto deadline = std::ranges::find(state.msrs, kMsrTscDeadline, &MsrState::index);
  if (deadline != state.msrs.end()) {
    time.push_back(*deadline);
  }
  return put_msrs(vcpu_fd, time);
}

}  // namespace

Result<std::vector<std::uint32_t>> msr_indices(int kvm_fd) {
  std::uint32_t count = 0;
  ::ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &count);  // E2BIG, and how many there are
  std::vector<std::uint32_t> buffer(1 + count);
  buffer[0] = count;
  TRY(try_ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, buffer.data(), "KVM_GET_MSR_INDEX_LIST"));
  return std::vector<std::uint32_t>(buffer.begin() + 1, buffer.end());
}

Result<VcpuState> capture_vcpu(const KvmVm& vm, int vcpu_fd, std::span<const std::uint32_t> msrs) {
  VcpuState state;
  state.xsave.resize(xsave_size(vm));
  for (const Step& step : kCaptureOrder) {
    if (step.item != nullptr) {
      TRY(try_ioctl(vcpu_fd, step.item->get, step.item->bytes(state).data(), step.item->get_name));
    } else {
      TRY(capture_msrs(vcpu_fd, msrs, state));
    }
  }
  state.tsc_khz = static_cast<std::uint32_t>(std::max(::ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0UL), 0));
  return state;
}

Result<> put_vcpu(const KvmVm& vm, int vcpu_fd, const VcpuState& state, TscMode tsc) {
  VcpuState copy = state;
  // KVM reads as much as it has, whatever the state brings.
  const std::size_t size = xsave_size(vm);
  if (std::any_of(
          copy.xsave.begin() + static_cast<std::ptrdiff_t>(std::min(size, copy.xsave.size())),
          copy.xsave.end(), [](std::byte byte) { return byte != std::byte{0}; })) {
    return fail(
        ErrorCode::kBadInput,
        fmt::format("KVM_SET_XSAVE: {} bytes of processor state, and this host has room for "
                    "{}",
                    copy.xsave.size(), size));
  }
  copy.xsave.resize(size);
  std::erase_if(copy.msrs, [](const MsrState& msr) { return msr.index == kMsrTscDeadline; });
  for (const Step& step : kPutOrder) {
    if (step.item != nullptr) {
      TRY(try_ioctl(vcpu_fd, step.item->set, step.item->bytes(copy).data(), step.item->set_name));
    } else {
      TRY(put_msrs(vcpu_fd, copy.msrs));
      TRY(put_time(vcpu_fd, state, tsc));
    }
  }
  return {};
}

Result<MachineKvmState> capture_machine(const KvmVm& vm) {
  MachineKvmState state;
  for (std::uint32_t id = 0; id < state.irqchips.size(); ++id) {
    kvm_irqchip chip = {};
    chip.chip_id = id;
    TRY(try_ioctl(vm.fd(), KVM_GET_IRQCHIP, &chip, "KVM_GET_IRQCHIP"));
    state.irqchips.at(id) = std::bit_cast<BytesOf<kvm_irqchip>>(chip);
  }
  kvm_clock_data clock = {};
  state.clock_at_ns = realtime_ns();
  TRY(try_ioctl(vm.fd(), KVM_GET_CLOCK, &clock, "KVM_GET_CLOCK"));
  state.clock_ns = clock.clock;
  return state;
}

Result<> put_interrupt_controllers(const KvmVm& vm, const MachineKvmState& state) {
  for (std::uint32_t id = 0; id < state.irqchips.size(); ++id) {
    auto chip = std::bit_cast<kvm_irqchip>(state.irqchips.at(id));
    chip.chip_id = id;
    TRY(try_ioctl(vm.fd(), KVM_SET_IRQCHIP, &chip, "KVM_SET_IRQCHIP"));
  }
  return {};
}

Result<> put_clock(const KvmVm& vm, const MachineKvmState& state) {
  kvm_clock_data clock = {};
  clock.clock = state.clock_ns + elapsed_ns(state.clock_at_ns);
  TRY(try_ioctl(vm.fd(), KVM_SET_CLOCK, &clock, "KVM_SET_CLOCK"));
  return {};
}

}  // namespace vireo::arch
