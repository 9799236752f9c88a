// SPDX-License-Identifier: Apache-2.0
// mark N: writes the byte N to vireo's mark port, for scripts in the guest.
#include "syscalls.h"

__attribute__((used)) static void run(const long* stack) {
  const long argc = stack[0];
  const char* const* argv = (const char* const*)(stack + 1);
  unsigned number = 0;
  if (argc != 2) {
    syscall3(kSysExit, 64, 0, 0);
  }
  for (const char* digit = argv[1]; *digit >= '0' && *digit <= '9'; ++digit) {
    number = number * 10 + (unsigned)(*digit - '0');
  }
  if (syscall3(kSysIoperm, kMarkPort, 1, 1) != 0) {
    syscall3(kSysExit, 77, 0, 0);
  }
  mark((unsigned char)number);
  syscall3(kSysExit, 0, 0, 0);
}
