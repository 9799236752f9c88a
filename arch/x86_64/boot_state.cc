// SPDX-License-Identifier: Apache-2.0
// The state in which the first vCPU enters the kernel: Documentation/arch/x86/boot.rst, "64-bit
// BOOT PROTOCOL", and the PVH direct boot ABI (docs/misc/pvh of Xen).
#include <array>
#include <cstdint>
#include <vector>

#include <asm/processor-flags.h>

#include "arch/arch.h"
#include "arch/x86_64/layout.h"
#include "src/kvm/uapi.h"

namespace vireo::arch {

namespace {

constexpr std::uint64_t kPageSize = 4096;
constexpr std::uint64_t kEferLme = 1U << 8;
constexpr std::uint64_t kEferLma = 1U << 10;
constexpr std::uint64_t kEferNxe = 1U << 11;
constexpr std::uint64_t kPtePresent = 1U << 0;
constexpr std::uint64_t kPteWritable = 1U << 1;
constexpr std::uint64_t kPteHuge = 1U << 7;

// Selectors that Linux's 64-bit entry asks for (__BOOT_CS, __BOOT_DS), and a TSS behind them.
constexpr std::uint16_t kCodeSelector = 0x10;
constexpr std::uint16_t kDataSelector = 0x18;
constexpr std::uint16_t kTssSelector = 0x20;

constexpr std::uint8_t kTypeCode = 0xb;  // execute, read, accessed
constexpr std::uint8_t kTypeData = 0x3;  // read, write, accessed
constexpr std::uint8_t kTypeTss = 0xb;   // busy TSS

kvm_segment flat_segment(std::uint16_t selector, std::uint8_t type) {
  kvm_segment segment = {};
  segment.base = 0;
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  return segment;
}

/// The descriptor (SDM volume 3, 3.4.5) that loads as `segment`.
std::uint64_t descriptor(const kvm_segment& segment) {
  const std::uint64_t base = segment.base;
  const std::uint64_t limit = segment.g != 0 ? segment.limit >> 12 : segment.limit;
  const std::uint64_t access =
      segment.type | (segment.s << 4U) | (segment.dpl << 5U) | (segment.present << 7U);
  const auto flags =
      static_cast<std::uint64_t>((segment.l << 1U) | (segment.db << 2U) | (segment.g << 3U));
  return (limit & 0xffff) | ((base & 0xffffff) << 16) | (access << 40) |
         ((limit >> 16 & 0xf) << 48) | (flags << 52) | ((base >> 24 & 0xff) << 56);
}

struct Segments {
  kvm_segment code;
  kvm_segment data;
  kvm_segment tss;
};

Segments segments_for(BootProtocol protocol) {
  Segments segments = {.code = flat_segment(kCodeSelector, kTypeCode),
                       .data = flat_segment(kDataSelector, kTypeData),
                       .tss = flat_segment(kTssSelector, kTypeTss)};
  (protocol == BootProtocol::kLinux64 ? segments.code.l : segments.code.db) = 1;
  segments.data.db = 1;
  segments.tss.s = 0;
  segments.tss.g = 0;
  segments.tss.limit = 0x67;
  return segments;
}

bool write_gdt(GuestMemory& memory, const Segments& segments) {
  const std::array<std::uint64_t, 5> gdt = {0, 0, descriptor(segments.code),
                                            descriptor(segments.data), descriptor(segments.tss)};
  return memory.write_object(layout::kGdt, gdt);
}

/// Identity-maps the first 4 GiB by pages of 2 MiB: kernel, zero page and command line lie there,
/// and an early fault of the kernel's maps whatever else it wants.
bool write_page_tables(GuestMemory& memory) {
  constexpr std::uint64_t kTables = layout::kPageTables.value();
  constexpr std::size_t kEntries = kPageSize / sizeof(std::uint64_t);
  constexpr std::size_t kDirectories = 4;  // one for each GiB
  std::vector<std::uint64_t> tables((2 + kDirectories) * kEntries);
  const std::uint64_t link = kPtePresent | kPteWritable;
  tables[0] = (kTables + kPageSize) | link;
  for (std::size_t gib = 0; gib < kDirectories; ++gib) {
    tables[kEntries + gib] = (kTables + (2 + gib) * kPageSize) | link;
    for (std::size_t i = 0; i < kEntries; ++i) {
      tables[(2 + gib) * kEntries + i] =
          (gib * kEntries + i) << 21 | kPtePresent | kPteWritable | kPteHuge;
    }
  }
  return memory.write(layout::kPageTables, std::as_bytes(std::span(tables)));
}

Result<> set_system_registers(int vcpu_fd, BootProtocol protocol, const Segments& segments) {
  kvm_sregs sregs = {};
  TRY(try_ioctl(vcpu_fd, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"));
  sregs.cs = segments.code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segments.data;
  sregs.tr = segments.tss;
  sregs.gdt.base = layout::kGdt.value();
  sregs.gdt.limit = 5 * sizeof(std::uint64_t) - 1;
  sregs.idt.base = 0;
  sregs.idt.limit = 0;
  sregs.cr0 = X86_CR0_PE | X86_CR0_ET;
  sregs.cr4 = 0;
  sregs.efer = 0;
  if (protocol == BootProtocol::kLinux64) {
    sregs.cr0 |= X86_CR0_PG;
    sregs.cr3 = layout::kPageTables.value();
    sregs.cr4 = X86_CR4_PAE;
    sregs.efer = kEferLme | kEferLma | kEferNxe;
  }
  TRY(try_ioctl(vcpu_fd, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS"));
  return {};
}

}  // namespace

Result<> setup_boot_vcpu(int vcpu_fd, GuestMemory& memory, const EntryPoint& entry) {
  const Segments segments = segments_for(entry.protocol);
  // RAM begins at 0 and is larger than all of this in every machine that can be configured.
  CHECK(write_gdt(memory, segments));
  if (entry.protocol == BootProtocol::kLinux64) {
    CHECK(write_page_tables(memory));
  }
  TRY(set_system_registers(vcpu_fd, entry.protocol, segments));
  kvm_regs regs = {};
  regs.rflags = X86_EFLAGS_FIXED;
  regs.rip = entry.address.value();
  if (entry.protocol == BootProtocol::kLinux64) {
    regs.rsi = entry.parameters.value();
    regs.rsp = regs.rbp = layout::kBootStack.value();
  } else {
    regs.rbx = entry.parameters.value();
  }
  TRY(try_ioctl(vcpu_fd, KVM_SET_REGS, &regs, "KVM_SET_REGS"));
  return {};
}

}  // namespace vireo::arch
