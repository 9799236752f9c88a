// SPDX-License-Identifier: Apache-2.0
// The ways to end as tests of their own, and a fault that is reported before it ends the machine.
#include "tests.h"

void test_power_off(const struct argument* argument) {
  (void)argument;
  end_power_off();
}

void test_reboot(const struct argument* argument) {
  (void)argument;
  end_reboot();
}

void test_triple_fault(const struct argument* argument) {
  (void)argument;
  end_triple_fault();
}

void test_panic(const struct argument* argument) {
  (void)argument;
  end_panic();
}

void test_halt(const struct argument* argument) {
  (void)argument;
  end_halt();
}

// Reads behind what is mapped.
void test_trap(const struct argument* argument) {
  (void)argument;
  (void)mmio_read8((uint64_t)1 << 40);
}
