// SPDX-License-Identifier: Apache-2.0
// RAM around the hole for devices, the interrupt controllers in KVM, and what is asked of KVM.
#include <array>
#include <cstdint>
#include <vector>

#include "arch/arch.h"
#include "arch/x86_64/layout.h"
#include "src/kvm/uapi.h"

namespace vireo::arch {

namespace {

// NOLINTNEXTLINE(modernize-use-designated-initializers): clang-format takes .name for the macro's.
#define VIREO_CAPABILITY(cap) \
  KvmCapability {             \
    (cap), #cap               \
  }

constexpr std::array kRequired = {
    VIREO_CAPABILITY(KVM_CAP_USER_MEMORY),
    VIREO_CAPABILITY(KVM_CAP_IRQCHIP),
    VIREO_CAPABILITY(KVM_CAP_HLT),
    VIREO_CAPABILITY(KVM_CAP_SET_TSS_ADDR),
    VIREO_CAPABILITY(KVM_CAP_SET_IDENTITY_MAP_ADDR),
    VIREO_CAPABILITY(KVM_CAP_EXT_CPUID),
    VIREO_CAPABILITY(KVM_CAP_MP_STATE),
    VIREO_CAPABILITY(KVM_CAP_ADJUST_CLOCK),
    VIREO_CAPABILITY(KVM_CAP_VCPU_EVENTS),
    VIREO_CAPABILITY(KVM_CAP_DEBUGREGS),
    VIREO_CAPABILITY(KVM_CAP_XSAVE),
    VIREO_CAPABILITY(KVM_CAP_XCRS),
    VIREO_CAPABILITY(KVM_CAP_IMMEDIATE_EXIT),
    VIREO_CAPABILITY(KVM_CAP_GET_TSC_KHZ),
};

#undef VIREO_CAPABILITY

/// What KVM_CREATE_IRQCHIP has set: the pins of the 8259 pair, and those of the IOAPIC.
std::vector<kvm_irq_routing_entry> line_routes() {
  constexpr std::uint32_t kPinsOf8259 = 8;
  std::vector<kvm_irq_routing_entry> routes;
  const auto add = [&routes](std::uint32_t gsi, std::uint32_t chip, std::uint32_t pin) {
    kvm_irq_routing_entry route = {};
    route.gsi = gsi;
    route.type = KVM_IRQ_ROUTING_IRQCHIP;
    route.u.irqchip.irqchip = chip;
    route.u.irqchip.pin = pin;
    routes.push_back(route);
  };
  for (std::uint32_t gsi = 0; gsi <= layout::kLastGsi; ++gsi) {
    if (gsi < 2 * kPinsOf8259) {
      add(gsi, gsi < kPinsOf8259 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
          gsi % kPinsOf8259);
    }
    add(gsi, KVM_IRQCHIP_IOAPIC, gsi);
  }
  return routes;
}

}  // namespace

std::span<const KvmCapability> required_capabilities() {
  return kRequired;
}

std::vector<GuestRange> ram_ranges(std::uint64_t size) {
  const std::uint64_t hole = layout::kMmioHoleStart.value();
  if (size <= hole) {
    return {*GuestRange::create(GuestAddress(0), size)};
  }
  return {*GuestRange::create(GuestAddress(0), hole),
          *GuestRange::create(layout::kHole64End, size - hole)};
}

Result<> create_interrupt_controllers(KvmVm& vm) {
  std::uint64_t identity_map = layout::kKvmIdentityMap.value();
  TRY(try_ioctl(vm.fd(), KVM_SET_IDENTITY_MAP_ADDR, &identity_map, "KVM_SET_IDENTITY_MAP_ADDR"));
  TRY(try_ioctl(vm.fd(), KVM_SET_TSS_ADDR, layout::kKvmTss.value(), "KVM_SET_TSS_ADDR"));
  TRY(try_ioctl(vm.fd(), KVM_CREATE_IRQCHIP, 0UL, "KVM_CREATE_IRQCHIP"));
  vm.set_line_routes(line_routes());
  // No KVM_CREATE_PIT2: a guest of hardware-reduced ACPI ignores a PIT, its clocks are kvmclock,
  // the TSC (whose rate CPUID tells) and the local APIC; and KVM takes 8 ms to end a VM that has
  // one.
  return {};
}

Result<> report_unknown_msrs(const KvmVm& vm) {
  kvm_enable_cap capability = {};
  capability.cap = KVM_CAP_X86_USER_SPACE_MSR;
  capability.args[0] = KVM_MSR_EXIT_REASON_UNKNOWN;
  TRY(try_ioctl(vm.fd(), KVM_ENABLE_CAP, &capability, "profile: KVM_CAP_X86_USER_SPACE_MSR"));
  return {};
}

}  // namespace vireo::arch
