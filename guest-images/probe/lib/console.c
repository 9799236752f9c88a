// SPDX-License-Identifier: Apache-2.0
// COM1, polled. The line status is asked once for each FIFO's worth: an exit less for each byte.
#include "probe.h"

#define FIFO_SIZE 16
#define FIFO_ENABLE 0x01

// VMMs have a transmitter that is always empty; a UART that is not there reads as 0xff.
static unsigned room;
static bool fifo_enabled;

void print_char(char c) {
  if (!fifo_enabled) {
    out8(COM1 + UART_FIFO_CONTROL, FIFO_ENABLE);
    fifo_enabled = true;
  }
  if (room == 0) {
    while ((in8(COM1 + UART_LINE_STATUS) & LINE_STATUS_EMPTY) == 0) {
      relax();
    }
    room = FIFO_SIZE;
  }
  out8(COM1 + UART_DATA, (uint8_t)c);
  --room;
}

void print(const char* text) {
  for (; *text != '\0'; ++text) {
    if (*text == '\n') {
      print_char('\r');
    }
    print_char(*text);
  }
}

static void print_digits(uint64_t value, unsigned base) {
  char digits[20];
  size_t count = 0;
  do {
    digits[count++] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  while (count > 0) {
    print_char(digits[--count]);
  }
}

void print_number(uint64_t value) {
  print_digits(value, 10);
}

static void print_name(const char* name) {
  print("probe: ");
  print(name);
  print("=");
}

void print_value(const char* name, uint64_t value) {
  print_name(name);
  print_number(value);
  print("\n");
}

void print_hex_value(const char* name, uint64_t value) {
  print_name(name);
  print("0x");
  print_digits(value, 16);
  print("\n");
}

void print_text_value(const char* name, const char* text) {
  print_name(name);
  print(text);
  print("\n");
}
