// SPDX-License-Identifier: Apache-2.0
// Numbers that the assembly and the C of the probe share, and nothing else.
//
//   0x10_0000  PVH entry, CPL 0 handlers   (kept tiny: some KVMs interpret CPL 0)
//              C code, all of it at CPL 3
//   data       GDT, TSS with its I/O bitmap, IDT, page tables, all of them made by the assembler
//   bss        the two stacks
#ifndef VIREO_PROBE_MACHINE_H
#define VIREO_PROBE_MACHINE_H

// Segment selectors.
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_DATA 0x1b
#define USER_CODE 0x23
#define TSS_SELECTOR 0x28

// Interrupts are off until a test asks for them: a BIOS may have left a timer running that comes
// under the vector of an exception. Every port is CPL 3's by IOPL as well as by the TSS: an emulated
// processor forgets the TSS's type when another process of the VMM restores it.
#define USER_RFLAGS 0x3002
#define RFLAGS_INTERRUPTS 0x200

// Interrupt vectors.
#define FIRST_IRQ 0x20
#define IRQ_COUNT 16
#define IDT_ENTRIES (FIRST_IRQ + IRQ_COUNT)

// The byte that tells the VMM that CPL 3 is reached.
#define MARK_PORT 0x3f0
#define MARK_STARTED 1

// What service() has done at CPL 0, by its first argument.
#define SERVICE_TRIPLE_FAULT 0
#define SERVICE_WAIT 1       // sleep until interrupts_seen differs from the second argument
#define SERVICE_WRITE_MSR 2  // the second argument into the MSR that the third one names
#define SERVICE_HALT 3       // for good, with interrupts off
#define SERVICE_ENABLE_INTERRUPTS 4
#define SERVICE_CALL 5  // the function that the second argument is, with the third one

#define LOCAL_APIC 0xfee00000
#define LOCAL_APIC_EOI 0xb0

#define STACK_SIZE 0x4000

#endif
