// SPDX-License-Identifier: Apache-2.0
// A guest that only counts, at the privilege level of a kernel or of a user's program: how fast
// KVM runs either.
//
//   0x1000  PML4   0x2000  page directory pointers   0x3000  page directory   0x4000  code
#include <array>
#include <cstdint>

#include <asm/processor-flags.h>

#include "arch/arch.h"
#include "src/kvm/uapi.h"

namespace vireo::arch {

namespace {

constexpr GuestAddress kPml4{0x1000};
constexpr GuestAddress kDirectoryPointers{0x2000};
constexpr GuestAddress kDirectory{0x3000};
constexpr GuestAddress kCode{0x4000};

constexpr std::uint64_t kEferLongMode = 1U << 8 | 1U << 10;           // LME, LMA
constexpr std::uint64_t kPteOpenToAll = 1U << 0 | 1U << 1 | 1U << 2;  // present, writable, user
constexpr std::uint64_t kPteHuge = 1U << 7;

constexpr unsigned kInstructionsPerCount = 2;
constexpr std::array<std::uint8_t, 5> kCountingLoop = {
    0x48, 0xff, 0xc0,  // again: inc %rax
    0xeb, 0xfb,        //        jmp again
};

constexpr std::uint8_t kUserPrivilege = 3;
constexpr std::uint8_t kTypeCode = 0xb;  // execute, read, accessed
constexpr std::uint8_t kTypeData = 0x3;  // read, write, accessed
constexpr std::uint8_t kTypeTss = 0xb;   // busy TSS

/// Loaded through KVM_SET_SREGS and never from a table: the loop loads no segment.
kvm_segment segment(std::uint16_t index, std::uint8_t type, std::uint8_t privilege) {
  kvm_segment segment = {};
  segment.limit = 0xffffffff;
  segment.selector = static_cast<std::uint16_t>(index << 3U | privilege);
  segment.type = type;
  segment.present = 1;
  segment.dpl = privilege;
  segment.s = 1;
  segment.g = 1;
  return segment;
}

}  // namespace

Result<> setup_counting_vcpu(int vcpu_fd, GuestMemory& memory, GuestPrivilege privilege) {
  CHECK(memory.size() >= kCountingMemory);
  CHECK(memory.write_object(kPml4, kDirectoryPointers.value() | kPteOpenToAll));
  CHECK(memory.write_object(kDirectoryPointers, kDirectory.value() | kPteOpenToAll));
  CHECK(memory.write_object(kDirectory, kPteOpenToAll | kPteHuge));
  CHECK(memory.write_object(kCode, kCountingLoop));

  const std::uint8_t level = privilege == GuestPrivilege::kUser ? kUserPrivilege : 0;
  kvm_sregs sregs = {};
  TRY(try_ioctl(vcpu_fd, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"));
  sregs.cs = segment(1, kTypeCode, level);
  sregs.cs.l = 1;
  sregs.ss = segment(2, kTypeData, level);
  sregs.ss.db = 1;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss;
  sregs.tr = segment(3, kTypeTss, 0);
  sregs.tr.s = 0;
  sregs.tr.g = 0;
  sregs.tr.limit = 0x67;
  sregs.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_PG;
  sregs.cr3 = kPml4.value();
  sregs.cr4 = X86_CR4_PAE;
  sregs.efer = kEferLongMode;
  TRY(try_ioctl(vcpu_fd, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS"));

  kvm_regs regs = {};
  regs.rflags = X86_EFLAGS_FIXED;
  regs.rip = kCode.value();
  TRY(try_ioctl(vcpu_fd, KVM_SET_REGS, &regs, "KVM_SET_REGS"));
  return {};
}

Result<std::uint64_t> counted_instructions(int vcpu_fd) {
  kvm_regs regs = {};
  TRY(try_ioctl(vcpu_fd, KVM_GET_REGS, &regs, "KVM_GET_REGS"));
  return regs.rax * kInstructionsPerCount;
}

void count_on_host(std::uint64_t instructions) {
  std::uint64_t left = instructions / kInstructionsPerCount;
  asm volatile("1: dec %0\n jnz 1b" : "+r"(left) : : "cc");
}

}  // namespace vireo::arch
