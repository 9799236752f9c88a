// SPDX-License-Identifier: Apache-2.0
// The first program of a test guest. It does those words of the kernel command line itself that
// only end the guest, vireo.do=poweroff and vireo.do=reboot, and leaves all others to init.sh: a
// boot that is timed then has no shell in it, whose start and child processes take longer than all
// of this.
//
// Moment 1 of the boot timeline is its first instruction, moment 2 that the word is known.
#include "syscalls.h"

enum { kReadOnly = 0, kRebootMagic1 = (int)0xfee1dead, kRebootMagic2 = 0x28121969 };
static const long kPowerOff = 0x4321fedc;
static const long kRestart = 0x01234567;

static const char* after(const char* text, const char* prefix) {
  while (*prefix != 0 && *text == *prefix) {
    ++text;
    ++prefix;
  }
  return *prefix == 0 ? text : 0;
}

/// The word behind the last `vireo.do=` in `line`, whose words it ends by zeros.
static const char* find_word(char* line) {
  const char* word = "";
  int begins = 1;
  for (char* at = line; *at != 0; ++at) {
    const char* value = begins ? after(at, "vireo.do=") : 0;
    if (value != 0) {
      word = value;
    }
    begins = *at == ' ' || *at == '\n';
    if (begins) {
      *at = 0;
    }
  }
  return word;
}

static int is(const char* word, const char* name) {
  const char* rest = after(word, name);
  return rest != 0 && *rest == 0;
}

__attribute__((used)) static void run(const long* stack) {
  static char line[4097];
  const int marks = syscall3(kSysIoperm, kMarkPort, 1, 1) == 0;
  if (marks) {
    mark(1);
  }
  syscall5(kSysMount, (long)"proc", (long)"/proc", (long)"proc", 0, 0);
  const long file = syscall3(kSysOpen, (long)"/proc/cmdline", kReadOnly, 0);
  syscall3(kSysRead, file, (long)line, sizeof line - 1);
  const char* word = find_word(line);
  if (marks) {
    mark(2);
    syscall3(kSysIoperm, kMarkPort, 1, 0);
  }
  if (is(word, "poweroff")) {
    syscall3(kSysReboot, kRebootMagic1, kRebootMagic2, kPowerOff);
  } else if (is(word, "reboot")) {
    syscall3(kSysReboot, kRebootMagic1, kRebootMagic2, kRestart);
  }
  const long argc = stack[0];
  const char* const* environment = (const char* const*)(stack + 1 + argc + 1);
  const char* const arguments[] = {"sh", "/init.sh", word, 0};
  syscall3(kSysExecve, (long)"/bin/busybox", (long)arguments, (long)environment);
  syscall3(kSysExit, 127, 0, 0);
}
