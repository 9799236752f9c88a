// SPDX-License-Identifier: Apache-2.0
// The two ways in which a guest stamps the VMM's clock: vireo's mark port, Firecracker's boot
// timer.
#include "../lib/machine.h"
#include "tests.h"

#define BOOT_TIMER 0xc0000000
#define BOOT_TIMER_VALUE 123

// probe=mark N, 2 without a number (1 was written at the entry).
void test_mark(const struct argument* argument) {
  out8(MARK_PORT, (uint8_t)(argument->given ? argument->number : MARK_STARTED + 1));
}

void test_boot_timer(const struct argument* argument) {
  (void)argument;
  mmio_write8(BOOT_TIMER, BOOT_TIMER_VALUE);
}
