// SPDX-License-Identifier: Apache-2.0
// What the guest's programs without a C library share: they start within microseconds, where each
// page of a bigger program costs a page fault in the guest and often one in the host.
#pragma once

enum {
  kSysRead = 0,
  kSysOpen = 2,
  kSysExecve = 59,
  kSysExit = 60,
  kSysMount = 165,
  kSysReboot = 169,
  kSysIoperm = 173,
  kMarkPort = 0x3f0
};

static inline long syscall5(long number, long a, long b, long c, long d, long e) {
  long result;
  register long fourth __asm__("r10") = d;
  register long fifth __asm__("r8") = e;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
                   : "rcx", "r11", "memory");
  return result;
}

static inline long syscall3(long number, long a, long b, long c) {
  return syscall5(number, a, b, c, 0, 0);
}

/// Puts a moment into vireo's boot timeline. ioperm, because Debian's cloud kernel has no
/// /dev/port.
static inline void mark(unsigned char number) {
  __asm__ volatile("outb %0, %1" : : "a"(number), "d"((unsigned short)kMarkPort));
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
