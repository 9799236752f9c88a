// SPDX-License-Identifier: Apache-2.0
// CPL 3's way to interrupts and to the few things that only CPL 0 may do.
#include "machine.h"
#include "probe.h"

#define IO_APIC 0xfec00000
#define IO_APIC_INDEX (IO_APIC + 0x00)
#define IO_APIC_DATA (IO_APIC + 0x10)
#define IO_APIC_REDIRECTION 0x10

#define PIC1_MASK 0x21
#define PIC2_MASK 0xa1

extern volatile uint64_t trap_vector;
extern volatile uint64_t trap_error;
extern volatile uint64_t trap_rip;
extern volatile uint64_t trap_cs;
extern volatile uint64_t trap_address;
_Noreturn void on_trap(void);

uint64_t service(uint32_t number, uint64_t first, uint64_t second);

uint32_t apic_read(uint32_t reg) {
  return mmio_read32(LOCAL_APIC + reg);
}
void apic_write(uint32_t reg, uint32_t value) {
  mmio_write32(LOCAL_APIC + reg, value);
}

uint8_t irq_vector(unsigned irq) {
  return (uint8_t)(FIRST_IRQ + irq);
}

void enable_interrupts(void) {
  out8(PIC1_MASK, 0xff);
  out8(PIC2_MASK, 0xff);
  apic_write(APIC_SPURIOUS, APIC_ENABLE | irq_vector(IRQ_SPURIOUS));
  service(SERVICE_ENABLE_INTERRUPTS, 0, 0);
}

static void io_apic_write(uint32_t reg, uint32_t value) {
  mmio_write32(IO_APIC_INDEX, reg);
  mmio_write32(IO_APIC_DATA, value);
}

void route_gsi(unsigned gsi, unsigned irq) {
  uint32_t entry = IO_APIC_REDIRECTION + 2 * gsi;
  io_apic_write(entry + 1, apic_read(APIC_ID) & 0xff000000u);
  io_apic_write(entry, irq_vector(irq));
}

void wait_for_interrupt(uint64_t seen) {
  service(SERVICE_WAIT, seen, 0);
}

void write_msr(uint32_t msr, uint64_t value) {
  service(SERVICE_WRITE_MSR, value, msr);
}

uint64_t at_cpl_0(uint64_t (*function)(uint64_t argument), uint64_t argument) {
  return service(SERVICE_CALL, (uint64_t)function, argument);
}

static uint64_t read_msr_at_cpl_0(uint64_t msr) {
  uint32_t low;
  uint32_t high;
  __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"((uint32_t)msr));
  return (uint64_t)high << 32 | low;
}

uint64_t read_msr(uint32_t msr) {
  return at_cpl_0(read_msr_at_cpl_0, msr);
}

_Noreturn void end_triple_fault(void) {
  for (;;) {
    service(SERVICE_TRIPLE_FAULT, 0, 0);
  }
}

_Noreturn void end_halt(void) {
  for (;;) {
    service(SERVICE_HALT, 0, 0);
  }
}

// Entered from the CPL 0 exception handlers, on a fresh stack.
_Noreturn void on_trap(void) {
  static bool trapped;
  if (trapped) {
    end_triple_fault();
  }
  trapped = true;
  print_value("trap", trap_vector);
  print_hex_value("trap_error", trap_error);
  print_hex_value("trap_rip", trap_rip);
  print_hex_value("trap_cs", trap_cs);
  print_hex_value("trap_address", trap_address);
  end_panic();
}
