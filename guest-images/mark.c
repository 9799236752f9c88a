// SPDX-License-Identifier: Apache-2.0
// mark N: writes the byte N to vireo's mark port, which puts a moment into its boot timeline. Debian's
// cloud kernel has no /dev/port, hence ioperm. Without a C library: it starts within microseconds.

static long syscall3(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c)
                   : "rcx", "r11", "memory");
  return result;
}

enum { kSysExit = 60, kSysIoperm = 173, kMarkPort = 0x3f0 };

__attribute__((used)) static void run(const long *stack) {
  const long argc = stack[0];
  const char *const *argv = (const char *const *)(stack + 1);
  unsigned number = 0;
  if (argc != 2) {
    syscall3(kSysExit, 64, 0, 0);
  }
  for (const char *digit = argv[1]; *digit >= '0' && *digit <= '9'; ++digit) {
    number = number * 10 + (unsigned)(*digit - '0');
  }
  if (syscall3(kSysIoperm, kMarkPort, 1, 1) != 0) {
    syscall3(kSysExit, 77, 0, 0);
  }
  __asm__ volatile("outb %0, %1" : : "a"((unsigned char)number), "d"((unsigned short)kMarkPort));
  syscall3(kSysExit, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
