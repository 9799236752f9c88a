// SPDX-License-Identifier: Apache-2.0
// probe=button: sleeps until vireo's generic event device says that the power button was pressed.
#include "tests.h"

#define EVENT_PORT 0x604
#define EVENT_GSI 9
#define EVENT_POWER_BUTTON 0x1

void test_button(const struct argument* argument) {
  (void)argument;
  enable_interrupts();
  route_gsi(EVENT_GSI, EVENT_GSI);
  print_text_value("button", "ready");
  uint32_t events = 0;
  while ((events & EVENT_POWER_BUTTON) == 0) {
    uint64_t seen = interrupts_seen;
    events = in32(EVENT_PORT);
    if (events == 0) {
      wait_for_interrupt(seen);
    }
  }
  print_text_value("button", "pressed");
  print_value("button_interrupts", interrupt_counts[EVENT_GSI]);
}
