// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

#define SLEEP_CONTROL_PORT 0x600
#define SLEEP_S5 ((5 << 2) | (1 << 5))  // SLP_TYP 5, SLP_EN
#define I8042_COMMAND 0x64
#define I8042_RESET 0xfe
#define PVPANIC_PORT 0x505
#define PVPANIC_PANICKED 0x01

// A VMM may take its time after the guest's last word; what comes next is for VMMs that did not
// hear it. In ticks, because whoever ends after a fault had better not ask for the TSC's rate:
// about a second.
#define PATIENCE_TICKS 3000000000

static void be_patient(void) {
  uint64_t end = tsc() + PATIENCE_TICKS;
  while (tsc() < end) {
    relax();
  }
}

// The word sleep=PORT,VALUE tells another VMM's sleep control register, sleep=ADDRESS,VALUE (above
// the ports) one that is memory.
_Noreturn void end_power_off(void) {
  uint64_t address = SLEEP_CONTROL_PORT;
  uint64_t value = SLEEP_S5;
  const char* rest = command_line;
  for (struct word word; next_word(&rest, &word);) {
    if (strip_name(&word, "sleep") && take_number(&word, &address)) {
      (void)take_number(&word, &value);
    }
  }
  if (address > UINT16_MAX) {
    mmio_write8(address, (uint8_t)value);
  } else {
    out8((uint16_t)address, (uint8_t)value);
  }
  be_patient();
  end_reboot();
}

_Noreturn void end_reboot(void) {
  out8(I8042_COMMAND, I8042_RESET);
  be_patient();
  end_triple_fault();
}

_Noreturn void end_panic(void) {
  out8(PVPANIC_PORT, PVPANIC_PANICKED);
  be_patient();
  end_reboot();
}

static const struct {
  const char* name;
  void (*end)(void);
} ends[] = {
    {"poweroff", end_power_off}, {"reboot", end_reboot}, {"triple", end_triple_fault},
    {"panic", end_panic},        {"halt", end_halt},
};

_Noreturn void end_as_told(void) {
  struct word told;
  if (!text_word("end", &told)) {
    end_power_off();
  }
  for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); ++i) {
    if (word_is(told, ends[i].name)) {
      ends[i].end();
    }
  }
  print("probe: end= takes poweroff, reboot, triple, panic or halt\n");
  end_panic();
}
