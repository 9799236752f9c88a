// SPDX-License-Identifier: Apache-2.0
// probe=irq N: interrupts into a CPL 0 handler and back (N of each kind, 1000 without a number),
// sent by the local APIC to itself and by its one-shot timer.
#include "tests.h"

#define DIVIDE_BY_1 0xb
#define SLEEP_TICKS 1000000  // of the APIC's timer: 1 ms under KVM

static void wait_until(unsigned irq, uint64_t count) {
  while (interrupt_counts[irq] < count) {
    relax();
  }
}

void test_irq(const struct argument* argument) {
  uint64_t count = argument->given && argument->number > 0 ? argument->number : 1000;
  print_tsc_source();
  enable_interrupts();

  uint64_t start = tsc();
  for (uint64_t i = 1; i <= count; ++i) {
    apic_write(APIC_COMMAND_LOW, APIC_TO_SELF | irq_vector(IRQ_SELF));
    wait_until(IRQ_SELF, i);
  }
  print_value("irq_self_ticks", (tsc() - start) / count);
  print_value("irq_self", interrupt_counts[IRQ_SELF]);

  apic_write(APIC_TIMER_DIVIDE, DIVIDE_BY_1);
  apic_write(APIC_TIMER, irq_vector(IRQ_TIMER));
  start = tsc();
  for (uint64_t i = 1; i <= count; ++i) {
    apic_write(APIC_TIMER_COUNT, 1);
    wait_until(IRQ_TIMER, i);
  }
  print_value("irq_timer_ticks", (tsc() - start) / count);

  // An interrupt that came before the wait must end it too, or this test never ends.
  uint64_t seen = interrupts_seen;
  apic_write(APIC_TIMER_COUNT, 1);
  wait_until(IRQ_TIMER, count + 1);
  wait_for_interrupt(seen);
  seen = interrupts_seen;
  apic_write(APIC_TIMER_COUNT, SLEEP_TICKS);
  wait_for_interrupt(seen);
  print_value("irq_woken", interrupts_seen - seen);
  apic_write(APIC_TIMER, APIC_MASKED);
  print_value("irq_timer", interrupt_counts[IRQ_TIMER]);
  print_value("irq_spurious", interrupt_counts[IRQ_SPURIOUS]);
}
