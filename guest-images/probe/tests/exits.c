// SPDX-License-Identifier: Apache-2.0
// probe=exits N: what one exit costs in TSC ticks, by kind; N of each kind, 1000 without a number.
// The word mmio=ADDRESS names the register to read, else that of vireo's first virtio-mmio window.
#include "tests.h"

#define VIRTIO_MMIO 0xc0001000

static uint64_t average(uint64_t start, uint64_t count) {
  return (tsc() - start) / count;
}

void test_exits(const struct argument* argument) {
  uint64_t count = argument->given && argument->number > 0 ? argument->number : 1000;
  uint64_t address = number_word("mmio", VIRTIO_MMIO);
  print_tsc_source();

  uint64_t start = tsc();
  for (uint64_t i = 0; i < count; ++i) {
    (void)in8(COM1 + UART_LINE_STATUS);
  }
  print_value("port_read_ticks", average(start, count));

  start = tsc();
  for (uint64_t i = 0; i < count; ++i) {
    out8(COM1 + UART_SCRATCH, (uint8_t)i);
  }
  print_value("port_write_ticks", average(start, count));

  uint32_t value = 0;
  start = tsc();
  for (uint64_t i = 0; i < count; ++i) {
    value = mmio_read32(address);
  }
  print_value("mmio_read_ticks", average(start, count));
  print_hex_value("mmio_value", value);

  start = tsc();
  for (uint64_t i = 0; i < count; ++i) {
    (void)apic_read(APIC_VERSION);
  }
  print_value("apic_read_ticks", average(start, count));
}
