// SPDX-License-Identifier: Apache-2.0
// probe=hold MS: fills what a snapshot must keep with patterns, begins a timer of MS (3000 without
// a number) and waits at CPL 3 without touching any of it. COM1, polled once a millisecond, brings
// 'c': check, tell, load the patterns of the next generation; 'a': an answer and nothing else; and
// 'q': the end. Words: memory=MIB (4), timer=oneshot or deadline.
//
// Compiled code has the general registers alone, so the others are ours between two checks.
#include "tests.h"

#define MIB ((uint64_t)1 << 20)
#define PAGE 4096
#define GOLDEN_RATIO 0x9e3779b97f4a7c15

// CPUID.
#define LEAF_FEATURES 1
#define C_XSAVE (1u << 26)
#define C_TSC_DEADLINE (1u << 24)
#define LEAF_MORE_FEATURES 7
#define C_PKU (1u << 3)
#define LEAF_XSAVE 0xd
#define LEAF_EXTENDED_FEATURES 0x80000001
#define D_RDTSCP (1u << 27)

#define CR4_OSXSAVE (1u << 18)
#define CR4_PKE (1u << 22)

// Components of the XSAVE area, as bits of XCR0.
#define XCR0_X87 (1u << 0)
#define XCR0_SSE (1u << 1)
#define XCR0_AVX (1u << 2)
#define XCR0_AVX512 (7u << 5)
#define XCR0_PKRU (1u << 9)
#define FIRST_EXTENDED 2
#define COMPONENTS 8

struct question {
  uint32_t leaf;
  uint32_t subleaf;
  struct cpuid answer;
};

static uint64_t answer(uint64_t address) {
  struct question* question = (struct question*)address;
  question->answer = cpuid(question->leaf, question->subleaf);
  return 0;
}

// What KVM gives this guest. CPL 3's CPUID is the processor's own where nothing intercepts it.
static struct cpuid guest_cpuid(uint32_t leaf, uint32_t subleaf) {
  struct question question = {.leaf = leaf, .subleaf = subleaf};
  at_cpl_0(answer, (uint64_t)&question);
  return question.answer;
}

static uint64_t generation;

static uint64_t pattern(uint64_t index) {
  uint64_t mixed = (index + 1) * GOLDEN_RATIO ^ generation * 0x2545f4914f6cdd1d;
  return mixed ^ mixed >> 29;
}

static void print_verdict(const char* name, bool right) {
  print_text_value(name, right ? "ok" : "wrong");
}

static bool same(const void* one, const void* other, size_t size) {
  const uint8_t* a = one;
  const uint8_t* b = other;
  for (size_t i = 0; i < size; ++i) {
    if (a[i] != b[i]) {
      return false;
    }
  }
  return true;
}

// --- x87, SSE, AVX ----------------------------------------------------------------------------

// Intel SDM volume 1, 10.5.1 and 13.4.
struct fpu_image {
  uint16_t control;
  uint16_t status;
  uint8_t tags;  // a bit for each register that is in use
  uint8_t reserved;
  uint16_t opcode;  // this and the next two: kept by some processors only
  uint64_t instruction;
  uint64_t data;
  uint32_t mxcsr;
  uint32_t mxcsr_mask;
  struct {
    uint64_t mantissa;
    uint16_t exponent;
    uint16_t reserved[3];
  } st[8];
  uint64_t xmm[16][2];
  uint64_t unused[12];
  uint64_t components;
  uint64_t header[7];
  uint64_t extended[(PAGE - 576) / sizeof(uint64_t)];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct fpu_image) == PAGE, "has the layout of an XSAVE area");

static struct fpu_image loaded;
static struct fpu_image found;
static uint32_t xcr0;           // what is loaded of it; 0: no XSAVE
static uint32_t xcr0_register;  // with PKRU, which has instructions of its own
static struct {
  uint32_t offset;
  uint32_t size;
} extended[COMPONENTS];

static uint64_t set_cr4_bits(uint64_t bits) {
  uint64_t value;
  __asm__ volatile("mov %%cr4, %0" : "=r"(value));
  __asm__ volatile("mov %0, %%cr4" : : "r"(value | bits));
  return 0;
}

static uint64_t set_xcr0(uint64_t value) {
  __asm__ volatile("xsetbv" : : "a"((uint32_t)value), "d"(0), "c"(0));
  return 0;
}

// At CPL 3, because not every KVM that interprets CPL 0 knows it there. The processor's own
// answers, which may be the host's on such a KVM.
static uint32_t read_xcr0(void) {
  uint32_t low;
  uint32_t high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static void switch_on_xsave(void) {
  uint32_t offered = guest_cpuid(LEAF_XSAVE, 0).a;
  xcr0 = offered & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
  if ((xcr0 & XCR0_AVX) != 0 && (offered & XCR0_AVX512) == XCR0_AVX512) {
    xcr0 |= XCR0_AVX512;
  }
  at_cpl_0(set_cr4_bits, CR4_OSXSAVE);
  xcr0_register = xcr0 | (offered & XCR0_PKRU);
  at_cpl_0(set_xcr0, xcr0_register);
  for (unsigned i = FIRST_EXTENDED; i < COMPONENTS; ++i) {
    if ((xcr0 & 1u << i) == 0) {
      continue;
    }
    struct cpuid component = guest_cpuid(LEAF_XSAVE, i);
    if (component.b + component.a > sizeof(struct fpu_image)) {
      print_value("hold_xsave_component_too_far", i);
      end_panic();
    }
    extended[i].offset = component.b;
    extended[i].size = component.a;
  }
}

static void load_fpu(void) {
  unsigned rounding = 1 + (unsigned)(generation % 3);  // 0 is what a reset leaves
  memset(&loaded, 0, sizeof(loaded));
  loaded.control = (uint16_t)(0x27f | rounding << 10);  // 53 bits of precision
  loaded.status = 0x5320;  // top of stack 2, C3, C1 and C0, a result that was not exact
  loaded.tags = (uint8_t)~(1u << generation % 8);
  loaded.mxcsr = 0x1fa0 | rounding << 13;
  for (unsigned i = 0; i < 8; ++i) {
    loaded.st[i].mantissa = pattern(i) | (uint64_t)1 << 63;
    loaded.st[i].exponent = (uint16_t)(0x3fff + i);
  }
  for (unsigned i = 0; i < 16; ++i) {
    loaded.xmm[i][0] = pattern(0x10 + 2 * i);
    loaded.xmm[i][1] = pattern(0x11 + 2 * i);
  }
  if (xcr0 == 0) {
    __asm__ volatile("fxrstor64 %0" : : "m"(loaded));
    return;
  }
  loaded.components = xcr0;
  for (unsigned i = FIRST_EXTENDED; i < COMPONENTS; ++i) {
    uint64_t* words = (uint64_t*)((uint8_t*)&loaded + extended[i].offset);
    for (unsigned word = 0; word < extended[i].size / sizeof(uint64_t); ++word) {
      words[word] = pattern(0x100 * i + word);
    }
  }
  __asm__ volatile("xrstor64 %0" : : "m"(loaded), "a"(xcr0), "d"(0));
}

static void store_fpu(void) {
  memset(&found, 0, sizeof(found));
  if (xcr0 == 0) {
    __asm__ volatile("fxsave64 %0" : "=m"(found));
  } else {
    __asm__ volatile("xsave64 %0" : "+m"(found) : "a"(xcr0), "d"(0));
  }
}

static bool same_component(unsigned i) {
  return same((const uint8_t*)&loaded + extended[i].offset,
              (const uint8_t*)&found + extended[i].offset, extended[i].size);
}

static void tell_fpu(void) {
  bool x87 =
      loaded.control == found.control && loaded.status == found.status && loaded.tags == found.tags;
  for (unsigned i = 0; i < 8; ++i) {
    x87 = x87 && loaded.st[i].mantissa == found.st[i].mantissa &&
          loaded.st[i].exponent == found.st[i].exponent;
  }
  print_verdict("hold_sse", same(loaded.xmm, found.xmm, sizeof(loaded.xmm)));
  if ((xcr0 & XCR0_AVX) == 0) {
    print_text_value("hold_avx", "none");
  } else {
    print_verdict("hold_avx", same_component(2));
  }
  if ((xcr0 & XCR0_AVX512) == 0) {
    print_text_value("hold_avx512", "none");
  } else {
    print_verdict("hold_avx512", same_component(5) && same_component(6) && same_component(7));
  }
  if (xcr0 == 0) {
    print_text_value("hold_xcr0", "none");
  } else {
    print_verdict("hold_xcr0", read_xcr0() == xcr0_register);
  }
  print_verdict("hold_x87", x87);
  print_verdict("hold_mxcsr", loaded.mxcsr == found.mxcsr);
}

// --- PKRU -------------------------------------------------------------------------------------

static bool has_pkru;

static void load_pkru(void) {
  // All of the probe's pages have key 0, which stays allowed.
  __asm__ volatile("wrpkru" : : "a"((uint32_t)pattern(0x1000) & ~3u), "c"(0), "d"(0));
}

static bool pkru_is_right(void) {
  uint32_t value;
  uint32_t high;
  __asm__ volatile("rdpkru" : "=a"(value), "=d"(high) : "c"(0));
  return value == ((uint32_t)pattern(0x1000) & ~3u);
}

// --- FS and GS --------------------------------------------------------------------------------

#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define SLOTS 16

static uint64_t slots[SLOTS];

static uint64_t fs_slot(void) {
  return generation % (SLOTS / 2);
}
static uint64_t gs_slot(void) {
  return fs_slot() + SLOTS / 2;
}

static void load_bases(void) {
  for (unsigned i = 0; i < SLOTS; ++i) {
    slots[i] = pattern(0x2000 + i);
  }
  write_msr(MSR_FS_BASE, (uint64_t)&slots[fs_slot()]);
  write_msr(MSR_GS_BASE, (uint64_t)&slots[gs_slot()]);
}

static bool bases_are_right(void) {
  uint64_t at_fs;
  uint64_t at_gs;
  __asm__ volatile("movq %%fs:0, %0" : "=r"(at_fs) : : "memory");
  __asm__ volatile("movq %%gs:0, %0" : "=r"(at_gs) : : "memory");
  return at_fs == pattern(0x2000 + fs_slot()) && at_gs == pattern(0x2000 + gs_slot()) &&
         read_msr(MSR_FS_BASE) == (uint64_t)&slots[fs_slot()] &&
         read_msr(MSR_GS_BASE) == (uint64_t)&slots[gs_slot()];
}

// --- debug registers, with every breakpoint off -----------------------------------------------

#define DR6_HITS 0xfu            // its other bits are not the same on all processors
#define DR7_ALL_OFF 0x400        // the bit that is always set
#define DR7_CONDITIONS_SHIFT 16  // what each breakpoint would wait for, and its length

struct debug_registers {
  uint64_t address[4];
  uint64_t status;
  uint64_t control;
};

static struct debug_registers wanted_debug(void) {
  struct debug_registers wanted;
  for (unsigned i = 0; i < 4; ++i) {
    wanted.address[i] = pattern(0x3000 + i) >> 17;  // a canonical address
  }
  wanted.status = 1 + generation % DR6_HITS;
  // Written data, of 1, 2, 4 or 8 bytes.
  wanted.control = DR7_ALL_OFF | (uint64_t)(0x1111 | (pattern(0x3004) & 0xcccc))
                                     << DR7_CONDITIONS_SHIFT;
  return wanted;
}

static uint64_t write_debug(uint64_t from) {
  const struct debug_registers* to = (const struct debug_registers*)from;
  __asm__ volatile("mov %0, %%db0" : : "r"(to->address[0]));
  __asm__ volatile("mov %0, %%db1" : : "r"(to->address[1]));
  __asm__ volatile("mov %0, %%db2" : : "r"(to->address[2]));
  __asm__ volatile("mov %0, %%db3" : : "r"(to->address[3]));
  __asm__ volatile("mov %0, %%db6" : : "r"(to->status));
  __asm__ volatile("mov %0, %%db7" : : "r"(to->control));
  return 0;
}

static uint64_t read_debug(uint64_t into) {
  struct debug_registers* read = (struct debug_registers*)into;
  __asm__ volatile("mov %%db0, %0" : "=r"(read->address[0]));
  __asm__ volatile("mov %%db1, %0" : "=r"(read->address[1]));
  __asm__ volatile("mov %%db2, %0" : "=r"(read->address[2]));
  __asm__ volatile("mov %%db3, %0" : "=r"(read->address[3]));
  __asm__ volatile("mov %%db6, %0" : "=r"(read->status));
  __asm__ volatile("mov %%db7, %0" : "=r"(read->control));
  return 0;
}

static void load_debug(void) {
  struct debug_registers wanted = wanted_debug();
  at_cpl_0(write_debug, (uint64_t)&wanted);
}

static bool debug_is_right(void) {
  struct debug_registers wanted = wanted_debug();
  struct debug_registers read;
  at_cpl_0(read_debug, (uint64_t)&read);
  return same(wanted.address, read.address, sizeof(read.address)) &&
         wanted.status == (read.status & DR6_HITS) && wanted.control == read.control;
}

// --- MSRs that nothing here uses --------------------------------------------------------------

#define MSR_PAT 0x277
#define MSR_TSC_AUX 0xc0000103

static const struct {
  uint32_t msr;
  unsigned shift;  // of the pattern, to what the MSR takes
} msrs[] = {
    {0x174, 48},       // SYSENTER_CS: a selector
    {0x175, 32},       // SYSENTER_ESP: AMD's has 32 bits
    {0x176, 32},       // SYSENTER_EIP
    {MSR_PAT, 0},      // made into memory types
    {0xc0000081, 0},   // STAR
    {0xc0000082, 17},  // LSTAR: a canonical address
    {0xc0000083, 17},  // CSTAR
    {0xc0000084, 32},  // SFMASK
    {0xc0000102, 17},  // KERNEL_GS_BASE
    {MSR_TSC_AUX, 32},
};
#define MSR_COUNT (sizeof(msrs) / sizeof(msrs[0]))

static bool has_tsc_aux;

static bool is_held(unsigned index) {
  return msrs[index].msr != MSR_TSC_AUX || has_tsc_aux;
}

static uint64_t wanted_msr(unsigned index) {
  uint64_t value = pattern(0x4000 + index) >> msrs[index].shift;
  if (msrs[index].msr != MSR_PAT) {
    return value;
  }
  // The probe's pages use entry 0, which stays write-back.
  static const uint8_t types[] = {0, 1, 4, 5, 6, 7};
  uint64_t pat = 6;
  for (unsigned i = 1; i < 8; ++i) {
    pat |= (uint64_t)types[(value >> 8 * i & 0xff) % sizeof(types)] << 8 * i;
  }
  return pat;
}

static void load_msrs(void) {
  for (unsigned i = 0; i < MSR_COUNT; ++i) {
    if (is_held(i)) {
      write_msr(msrs[i].msr, wanted_msr(i));
    }
  }
}

static void tell_msrs(void) {
  bool right = true;
  for (unsigned i = 0; i < MSR_COUNT; ++i) {
    if (is_held(i) && read_msr(msrs[i].msr) != wanted_msr(i)) {
      print_hex_value("hold_msr_wrong", msrs[i].msr);
      right = false;
    }
  }
  print_verdict("hold_msrs", right);
}

// --- the local APIC's timer -------------------------------------------------------------------

#define DIVIDE_BY_16 0x3
#define NS_PER_COUNT 16  // KVM's timer has 1 GHz
#define APIC_TIMER_DEADLINE 0x40000
#define MSR_TSC_DEADLINE 0x6e0
#define MS_MAX ((uint64_t)UINT32_MAX * NS_PER_COUNT / 1000000)

static bool has_timer;
static bool by_deadline;
static uint64_t timer_ms;
static uint64_t counted_before;
static uint64_t due;
static uint64_t seen;  // TSC; 0: not yet

static uint64_t timer_count(void) {
  return interrupt_counts[IRQ_TIMER] - counted_before;
}

static void begin_timer(void) {
  if (!has_timer) {
    return;
  }
  counted_before = interrupt_counts[IRQ_TIMER];
  seen = 0;
  if (by_deadline) {
    apic_write(APIC_TIMER, APIC_TIMER_DEADLINE | irq_vector(IRQ_TIMER));
    due = tsc() + timer_ms * tsc_khz();
    write_msr(MSR_TSC_DEADLINE, due);
  } else {
    apic_write(APIC_TIMER_DIVIDE, DIVIDE_BY_16);
    apic_write(APIC_TIMER, irq_vector(IRQ_TIMER));
    due = tsc() + timer_ms * tsc_khz();
    apic_write(APIC_TIMER_COUNT, (uint32_t)(timer_ms * 1000000 / NS_PER_COUNT));
  }
}

static void watch_timer(void) {
  if (seen == 0 && timer_count() != 0) {
    seen = tsc();
  }
}

static void tell_timer(void) {
  if (!has_timer) {
    print_text_value("hold_timer", "none");
    return;
  }
  watch_timer();
  print_value("hold_timer", timer_count());
  if (seen == 0) {
    return;
  }
  print("probe: hold_timer_late_us=");
  if (seen < due) {
    print("-");
  }
  print_number((seen < due ? due - seen : seen - due) * 1000 / tsc_khz());
  print("\n");
}

// --- memory -----------------------------------------------------------------------------------

static uint64_t* memory;
static uint64_t memory_words;

static void fill_memory(void) {
  for (uint64_t i = 0; i < memory_words; ++i) {
    memory[i] = pattern(0x10000 + i);
  }
}

static void tell_memory(void) {
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < memory_words; ++i) {
    wrong += memory[i] != pattern(0x10000 + i);
  }
  print_verdict("hold_memory", wrong == 0);
  print_value("hold_memory_wrong", wrong);
}

// --- all of it --------------------------------------------------------------------------------

static void find_features(void) {
  struct cpuid features = guest_cpuid(LEAF_FEATURES, 0);
  if (xcr0 == 0 && (features.c & C_XSAVE) != 0) {
    switch_on_xsave();
  }
  has_pkru = guest_cpuid(0, 0).a >= LEAF_MORE_FEATURES &&
             (guest_cpuid(LEAF_MORE_FEATURES, 0).c & C_PKU) != 0;
  if (has_pkru) {
    at_cpl_0(set_cr4_bits, CR4_PKE);
  }
  has_tsc_aux = guest_cpuid(0x80000000, 0).a >= LEAF_EXTENDED_FEATURES &&
                (guest_cpuid(LEAF_EXTENDED_FEATURES, 0).d & D_RDTSCP) != 0;
  has_timer = !by_deadline || (features.c & C_TSC_DEADLINE) != 0;
}

static void load_next_generation(void) {
  ++generation;
  load_fpu();
  if (has_pkru) {
    load_pkru();
  }
  load_bases();
  load_debug();
  load_msrs();
  fill_memory();
}

static void check(void) {
  store_fpu();
  print_value("hold_tsc", tsc());
  uint64_t ns = kvmclock_ns();
  if (ns != 0) {
    print_value("hold_kvmclock_ns", ns);
  }
  tell_fpu();
  if (has_pkru) {
    print_verdict("hold_pkru", pkru_is_right());
  } else {
    print_text_value("hold_pkru", "none");
  }
  print_verdict("hold_fs", bases_are_right());
  print_verdict("hold_debug", debug_is_right());
  tell_msrs();
  tell_timer();
  tell_memory();
}

// No exit, and an end even where the TSC was set back meanwhile.
static void spin_a_millisecond(void) {
  uint64_t start = tsc();
  do {
    watch_timer();
  } while (tsc() - start < tsc_khz());
}

static char next_char(void) {
  while ((in8(COM1 + UART_LINE_STATUS) & LINE_STATUS_DATA) == 0) {
    spin_a_millisecond();
  }
  return (char)in8(COM1 + UART_DATA);
}

static _Noreturn void refuse(const char* what) {
  print("probe: hold: ");
  print(what);
  print("\n");
  end_panic();
}

void test_hold(const struct argument* argument) {
  timer_ms = argument->given ? argument->number : 3000;
  if (timer_ms == 0 || timer_ms > MS_MAX) {
    refuse("the timer takes 1 to 68719 ms");
  }
  struct word mode;
  bool told = text_word("timer", &mode);
  by_deadline = told && word_is(mode, "deadline");
  if (told && !by_deadline && !word_is(mode, "oneshot")) {
    refuse("timer= takes oneshot or deadline");
  }
  uint64_t size = number_word("memory", 4) * MIB;
  memory = allocate(size, PAGE);
  memory_words = size / sizeof(uint64_t);

  print_tsc_source();
  find_features();
  enable_interrupts();
  (void)kvmclock_ns();  // its page is registered from here on
  uint64_t checks = 0;
  load_next_generation();
  begin_timer();
  print_text_value("hold", "ready");
  for (char c = next_char(); c != 'q'; c = next_char()) {
    if (c == 'a') {
      print_text_value("hold", "here");
    }
    if (c != 'c') {
      continue;
    }
    check();
    load_next_generation();
    // One that has yet to come goes on, so a later check tells of it.
    if (timer_count() != 0) {
      begin_timer();
    }
    print_value("hold", ++checks);
  }
  apic_write(APIC_TIMER, APIC_MASKED);
}
