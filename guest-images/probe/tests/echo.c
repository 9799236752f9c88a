// SPDX-License-Identifier: Apache-2.0
// probe=echo: sends back what COM1 receives, by polling, up to and with the first 'q'.
#include "tests.h"

void test_echo(const struct argument* argument) {
  (void)argument;
  print_text_value("echo", "ready");
  uint64_t received = 0;
  for (char c = '\0'; c != 'q'; ++received) {
    while ((in8(COM1 + UART_LINE_STATUS) & LINE_STATUS_DATA) == 0) {
      relax();
    }
    c = (char)in8(COM1 + UART_DATA);
    print_char(c);
  }
  print("\n");
  print_value("echo_received", received);
}
