// SPDX-License-Identifier: Apache-2.0
// What a test of the probe has to work with. All of it runs at CPL 3, where `in`, `out`, MMIO, the
// local APIC and the IOAPIC may be used directly; what needs CPL 0 goes through interrupts.c.
//
// A test is one file in tests/ with one function, and one line in tests/tests.c:
//
//   void test_rng(const struct argument *argument) {
//     uint64_t bytes = argument->given ? argument->number : 16;
//     …
//     print_value("rng_bytes", bytes);  // "probe: rng_bytes=16"
//   }
#ifndef VIREO_PROBE_PROBE_H
#define VIREO_PROBE_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// --- memory, ports and devices -----------------------------------------------------------------

void* memcpy(void* to, const void* from, size_t size);
void* memset(void* to, int value, size_t size);

static inline uint8_t in8(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
static inline uint32_t in32(uint16_t port) {
  uint32_t value;
  __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
static inline void out8(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t mmio_read8(uint64_t address) {
  return *(volatile uint8_t*)address;
}
static inline uint16_t mmio_read16(uint64_t address) {
  return *(volatile uint16_t*)address;
}
static inline uint32_t mmio_read32(uint64_t address) {
  return *(volatile uint32_t*)address;
}
static inline void mmio_write8(uint64_t address, uint8_t value) {
  *(volatile uint8_t*)address = value;
}
static inline void mmio_write16(uint64_t address, uint16_t value) {
  *(volatile uint16_t*)address = value;
}
static inline void mmio_write32(uint64_t address, uint32_t value) {
  *(volatile uint32_t*)address = value;
}

// Takes RAM for good, from 2 MiB on: behind the probe and all that a VMM puts into low memory. It
// is not cleared. Panics where the RAM there is at its end, or where no memory map tells it.
void* allocate(uint64_t size, uint64_t alignment);
// The first address that nobody has taken.
uint64_t free_memory(void);
// Maps the GiB with this address, below 512 GiB, to itself; the first four are from the start.
void map_gib_of(uint64_t address);

// --- the processor -----------------------------------------------------------------------------

struct cpuid {
  uint32_t a, b, c, d;
};

// Some KVMs take 40 us for one.
static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf) {
  struct cpuid r;
  __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(subleaf));
  return r;
}

// --- time --------------------------------------------------------------------------------------

static inline uint64_t tsc(void) {
  uint32_t low;
  uint32_t high;
  __asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
  return (uint64_t)high << 32 | low;
}
static inline void relax(void) {
  __asm__ volatile("pause" : : : "memory");
}

// Ticks of the TSC in a millisecond: from the word tsc_khz=, from kvmclock, from CPUID, in this
// order; where none of them knows, a guess of 1 GHz, which print_tsc_source() admits (once a run).
uint64_t tsc_khz(void);
void print_tsc_source(void);
// kvmclock's time, from a page that stays registered with KVM; 0 where there is no kvmclock.
uint64_t kvmclock_ns(void);

// --- console: COM1 -----------------------------------------------------------------------------

#define COM1 0x3f8
#define COM1_GSI 4

// Registers of the 16550, as offsets from COM1.
#define UART_DATA 0
#define UART_INTERRUPT_ENABLE 1
#define UART_FIFO_CONTROL 2  // written
#define UART_INTERRUPT_ID 2  // read
#define UART_MODEM_CONTROL 4
#define UART_LINE_STATUS 5
#define UART_SCRATCH 7
#define LINE_STATUS_DATA 0x01
#define LINE_STATUS_EMPTY 0x20

void print_char(char c);
void print(const char* text);
void print_number(uint64_t value);
// "probe: NAME=VALUE", the form that programs read.
void print_value(const char* name, uint64_t value);
void print_hex_value(const char* name, uint64_t value);
void print_text_value(const char* name, const char* text);

// --- command line ------------------------------------------------------------------------------

// A word's value, or the word that follows a `probe=` word: not NUL-terminated, ends at a space.
struct word {
  const char* text;
  size_t size;
};
// What follows the name of a test on the command line, where it is a number: "probe=touch 64".
struct argument {
  bool given;
  uint64_t number;
};

// Takes the next word off `*rest`; false at the end.
bool next_word(const char** rest, struct word* word);
bool word_is(struct word word, const char* text);
// True for "NAME=VALUE"; `word` becomes VALUE.
bool strip_name(struct word* word, const char* name);
// Decimal or 0x…; ends at the end of the word or at a comma. Takes it off `word`.
bool take_number(struct word* word, uint64_t* number);
// The value of the last word NAME=NUMBER, or `otherwise`.
uint64_t number_word(const char* name, uint64_t otherwise);
// Whether there is a word NAME=TEXT, and the TEXT of the last one.
bool text_word(const char* name, struct word* text);
extern const char* command_line;

// --- what the VMM told at the start --------------------------------------------------------------

// struct hvm_start_info and hvm_memmap_table_entry of Xen's public/arch-x86/hvm/start_info.h.
struct start_info {
  uint32_t magic;
  uint32_t version;
  uint32_t flags;
  uint32_t module_count;
  uint64_t modules;
  uint64_t command_line;
  uint64_t rsdp;
  uint64_t memory_map;  // from version 1
  uint32_t memory_map_entries;
  uint32_t reserved;
};
#define START_INFO_MAGIC 0x336ec578
struct memory_map_entry {
  uint64_t address;
  uint64_t size;
  uint32_t type;
  uint32_t reserved;
};
#define MEMORY_MAP_RAM 1
extern const struct start_info* start_info;
// The ACPI table with this signature, or 0.
uint64_t acpi_table(const char* signature);
// First address behind the probe itself.
extern uint8_t probe_end[];

// --- interrupts ----------------------------------------------------------------------------------

// Counted by the CPL 0 handlers, which do nothing else than acknowledge.
extern volatile uint64_t interrupts_seen;
extern volatile uint64_t interrupt_counts[];

uint32_t apic_read(uint32_t reg);
void apic_write(uint32_t reg, uint32_t value);
#define APIC_ID 0x020
#define APIC_VERSION 0x030
#define APIC_SPURIOUS 0x0f0
#define APIC_COMMAND_LOW 0x300
#define APIC_TIMER 0x320
#define APIC_TIMER_COUNT 0x380
#define APIC_TIMER_DIVIDE 0x3e0
#define APIC_ENABLE 0x100
#define APIC_TO_SELF 0x40000
#define APIC_MASKED 0x10000

// The vector under which GSI `gsi` (0…15) or one of our own sources is counted, as an index of
// interrupt_counts and as the vector itself.
#define IRQ_TIMER 0
#define IRQ_SELF 1
#define IRQ_SPURIOUS 15
uint8_t irq_vector(unsigned irq);
// Switches the local APIC on, the old interrupt controllers off, and lets interrupts in.
void enable_interrupts(void);
// Routes an edge-triggered line of the IOAPIC to irq_vector(irq) of this processor.
void route_gsi(unsigned gsi, unsigned irq);
// Sleeps until an interrupt has come since `seen` was read from interrupts_seen.
void wait_for_interrupt(uint64_t seen);
void write_msr(uint32_t msr, uint64_t value);
uint64_t read_msr(uint32_t msr);
// Runs `function`, a few instructions and no more: each may be interpreted.
uint64_t at_cpl_0(uint64_t (*function)(uint64_t argument), uint64_t argument);

// --- the end
// ---------------------------------------------------------------------------------------

// Each tries what its name says and, where the VMM has no such device, harder ways after a second:
// ACPI sleep control -> i8042 reset -> triple fault.
_Noreturn void end_power_off(void);
_Noreturn void end_reboot(void);
_Noreturn void end_triple_fault(void);
_Noreturn void end_panic(void);
_Noreturn void end_halt(void);
// By the word end=poweroff|reboot|triple|panic|halt; poweroff without it.
_Noreturn void end_as_told(void);

// --- tests
// -----------------------------------------------------------------------------------------

struct test {
  const char* name;
  void (*run)(const struct argument* argument);
};
extern const struct test tests[];
extern const size_t test_count;

#endif
