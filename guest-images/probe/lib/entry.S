// SPDX-License-Identifier: Apache-2.0
// From the PVH entry (docs/misc/pvh.pandoc of Xen: 32-bit protected mode, paging off, %ebx points at
// hvm_start_info) to C at CPL 3, and the handlers that stay at CPL 0. Every table is made here at
// build time: a KVM without hardware support interprets CPL 0, at 2 us an instruction.
#include "machine.h"

#define MSR_EFER 0xc0000080
#define EFER_LME (1 << 8)
#define CR0_LONG_MODE 0x80000033  // PG, NE, ET, MP, PE
#define CR4_LONG_MODE 0x00000620  // OSXMMEXCPT, OSFXSR, PAE

#define VECTOR_INVALID_OPCODE 6

#define PTE_LINK 0x27  // accessed, user, writable, present
#define PTE_PAGE 0xe7  // 2 MiB, dirty, accessed, user, writable, present

// ---- the note by which a loader finds the entry ----
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 8, 18  // name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

// ---- into long mode and down to CPL 3 ----
    .section .entry, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cld
    movl $page_map_4, %eax
    movl %eax, %cr3
    movl $CR4_LONG_MODE, %eax
    movl %eax, %cr4
    movl $MSR_EFER, %ecx
    movl $EFER_LME, %eax
    xorl %edx, %edx
    wrmsr
    movl $CR0_LONG_MODE, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $KERNEL_CODE, $long_mode

    .code64
long_mode:
    lidt idt_pointer
    movl $TSS_SELECTOR, %eax
    ltr %ax
    movl $first_user_frame, %esp
    iretq

user_entry:
    movl $MARK_PORT, %edx
    movl $MARK_STARTED, %eax
    outb %al, %dx
    movl %ebx, %edi
    call probe_main
    ud2

// ---- interrupts: count, acknowledge, return ----
    .align 16
    .global irq_stubs, trap_stubs, tss  // for the linker script
irq_stubs:
    .set vector, 0
    .rept IRQ_COUNT
    .org irq_stubs + 16 * vector
    incq interrupt_counts + 8 * vector
    jmp acknowledge
    .set vector, vector + 1
    .endr
acknowledge:
    incq interrupts_seen
    pushq %rax
    movl $(LOCAL_APIC + LOCAL_APIC_EOI), %eax
    movl $0, (%rax)
    popq %rax
    iretq

// ---- exceptions: note what happened, go on in C at CPL 3 ----
    .align 16
trap_stubs:
    .set vector, 0
    .rept FIRST_IRQ
    .org trap_stubs + 16 * vector
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
    // the processor has pushed an error code
    .else
    pushq $0
    .endif
    pushq $vector
    .if vector == VECTOR_INVALID_OPCODE
    jmp invalid_opcode
    .else
    jmp trap
    .endif
    .set vector, vector + 1
    .endr
trap:
    popq trap_vector
    popq trap_error
    popq trap_rip
    popq trap_cs
    movq %cr2, %rax
    movq %rax, trap_address
    movl $trap_user_frame, %esp
    iretq

trap_entry:
    call on_trap
    ud2

// ---- service(number, argument, argument): the way from C at CPL 3 to CPL 0 ----
// By ud2 at this one place: not every KVM lets a guest have `int $n`, and none lacks #UD.
    .global service
service:
    movl %edx, %ecx
service_call:
    ud2
    ret

    .set UD2_SIZE, 2
invalid_opcode:
    cmpq $service_call, 16(%rsp)
    jne trap
    addq $16, %rsp  // vector and error code
    addq $UD2_SIZE, (%rsp)
    cmpl $SERVICE_WAIT, %edi
    je wait
    cmpl $SERVICE_WRITE_MSR, %edi
    je write_msr
    cmpl $SERVICE_HALT, %edi
    je halt
    cmpl $SERVICE_ENABLE_INTERRUPTS, %edi
    je enable_interrupts_at_cpl_3
    cmpl $SERVICE_CALL, %edi
    je call_at_cpl_0
    lidt no_idt_pointer
    ud2
wait:
    cmpq interrupts_seen, %rsi
    jne 1f
    sti  // takes effect behind the next instruction, so no interrupt falls between the two
    hlt
1:  iretq
write_msr:
    movl %esi, %eax
    movq %rsi, %rdx
    shrq $32, %rdx
    wrmsr
    iretq
enable_interrupts_at_cpl_3:
    orq $RFLAGS_INTERRUPTS, 16(%rsp)
    iretq
call_at_cpl_0:
    movq %rdx, %rdi
    call *%rsi
    iretq
halt:
    cli
    hlt
    jmp halt

// ---- descriptor tables ----
    .data
    .align 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff  // KERNEL_CODE: 64-bit
    .quad 0x00cf93000000ffff  // KERNEL_DATA
    .quad 0x00cff3000000ffff  // USER_DATA
    .quad 0x00affb000000ffff  // USER_CODE: 64-bit
    // TSS_SELECTOR; the linker script takes the address apart.
    .word tss_end - tss - 1
    .word tss_address_0_15
    .byte tss_address_16_23
    .byte 0x89, 0, 0
    .quad 0
gdt_end:

gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 16 * IDT_ENTRIES - 1
    .quad idt
no_idt_pointer:
    .word 0
    .quad 0

    .align 16
first_user_frame:
    .quad user_entry, USER_CODE, USER_RFLAGS, user_stack_top, USER_DATA
trap_user_frame:
    .quad trap_entry, USER_CODE, USER_RFLAGS, user_stack_top, USER_DATA

// An interrupt gate to 1 MiB + `offset`; the linker script sees to it that this says all.
    .macro gate offset
    .word \offset
    .word KERNEL_CODE
    .byte 0, 0x8e
    .word 0x10
    .quad 0
    .endm

    .align 16
idt:
    .set vector, 0
    .rept FIRST_IRQ
    gate (trap_stubs_0_15+16*vector)
    .set vector, vector + 1
    .endr
    .set vector, 0
    .rept IRQ_COUNT
    gate (irq_stubs_0_15+16*vector)
    .set vector, vector + 1
    .endr

    .align 16
tss:
    .long 0
    .quad kernel_stack_top
    .fill 90, 1, 0
    .word io_bitmap - tss
io_bitmap:
    .fill 8192, 1, 0  // every port is CPL 3's
    .byte 0xff
tss_end:

// ---- what the handlers leave for C ----
    .align 16
    .global interrupts_seen, interrupt_counts
interrupts_seen:
    .quad 0
interrupt_counts:
    .fill IRQ_COUNT, 8, 0
    .global trap_vector, trap_error, trap_rip, trap_cs, trap_address
trap_vector:
    .quad 0
trap_error:
    .quad 0
trap_rip:
    .quad 0
trap_cs:
    .quad 0
trap_address:
    .quad 0

// ---- page tables: the first 4 GiB, address for address, by pages of 2 MiB ----
    .align 4096
page_map_4:
    .quad page_pointers + PTE_LINK
    .fill 511, 8, 0
    .global page_pointers
page_pointers:
    .set gib, 0
    .rept 4
    .quad page_directories + 4096 * gib + PTE_LINK
    .set gib, gib + 1
    .endr
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 4 * 512
    .quad (page << 21) + PTE_PAGE
    .set page, page + 1
    .endr

    .bss
    .align 16
    .skip STACK_SIZE
kernel_stack_top:
    .skip STACK_SIZE
user_stack_top:

    .section .note.GNU-stack, "", @progbits
