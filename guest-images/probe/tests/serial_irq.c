// SPDX-License-Identifier: Apache-2.0
// probe=serial-irq: as echo, but asleep until the UART interrupts through the IOAPIC.
#include "tests.h"

#define ENABLE_RECEIVED 0x01
#define MODEM_OUT2 0x08  // the gate between a PC's UART and its interrupt line

void test_serial_irq(const struct argument* argument) {
  (void)argument;
  enable_interrupts();
  route_gsi(COM1_GSI, COM1_GSI);
  out8(COM1 + UART_MODEM_CONTROL, MODEM_OUT2);
  out8(COM1 + UART_INTERRUPT_ENABLE, ENABLE_RECEIVED);
  print_text_value("serial_irq", "ready");
  uint64_t received = 0;
  char c = '\0';
  while (c != 'q') {
    uint64_t seen = interrupts_seen;
    // An edge comes only when the line was low, so everything there is must be taken.
    while (c != 'q' && (in8(COM1 + UART_LINE_STATUS) & LINE_STATUS_DATA) != 0) {
      c = (char)in8(COM1 + UART_DATA);
      print_char(c);
      ++received;
    }
    if (c != 'q') {
      wait_for_interrupt(seen);
    }
  }
  out8(COM1 + UART_INTERRUPT_ENABLE, 0);
  print("\n");
  print_value("serial_irq_received", received);
  print_value("serial_irq_interrupts", interrupt_counts[COM1_GSI]);
}
