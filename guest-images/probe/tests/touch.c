// SPDX-License-Identifier: Apache-2.0
// probe=touch MIB: writes one word into each 4 KiB page of so much RAM (16 MiB without a number),
// then reads all of them back. RAM is what the memory map says, above 4 GiB too. The word from= is
// the address to begin at, 2 MiB without it; stride= the bytes from one page to the next.
#include "tests.h"

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define PAGE 4096
#define FIRST (2 * MIB)  // behind the probe itself and all that a VMM puts into low memory
#define MAPPED_GIB 4
#define POINTERS 512  // one table of them maps 512 GiB
#define PTE_LINK 0x27
#define PTE_PAGE 0xe7

extern volatile uint64_t page_pointers[POINTERS];

// The page tables lie in memory that CPL 3 may write; new ones are taken from the RAM itself.
// Returns how much of it they took.
static uint64_t map_gib(uint64_t gib, uint64_t spare) {
  if (page_pointers[gib] != 0) {
    return 0;
  }
  volatile uint64_t* directory = (volatile uint64_t*)spare;
  for (uint64_t i = 0; i < 512; ++i) {
    directory[i] = gib * GIB + i * 2 * MIB + PTE_PAGE;
  }
  page_pointers[gib] = spare + PTE_LINK;
  return PAGE;
}

static bool ram_entry(uint32_t index, uint64_t* start, uint64_t* end) {
  const struct memory_map_entry* entry =
      (const struct memory_map_entry*)start_info->memory_map + index;
  *start = entry->address < FIRST ? FIRST : (entry->address + PAGE - 1) / PAGE * PAGE;
  *end = (entry->address + entry->size) / PAGE * PAGE;
  if (*end > POINTERS * GIB) {
    *end = POINTERS * GIB;
  }
  return entry->type == MEMORY_MAP_RAM && *start < *end;
}

static uint64_t pattern(uint64_t address) {
  return address ^ 0x9e3779b97f4a7c15;
}

struct walk {
  uint64_t from;
  uint64_t stride;
  uint64_t pages_max;
  uint64_t pages;
  uint64_t wrong;
  uint64_t last;
};

static void walk(struct walk* walk, bool write) {
  walk->pages = 0;
  for (uint32_t i = 0; i < start_info->memory_map_entries; ++i) {
    uint64_t address;
    uint64_t end;
    if (!ram_entry(i, &address, &end)) {
      continue;
    }
    if (address < walk->from) {
      address = walk->from;
    }
    for (; address < end && walk->pages < walk->pages_max; address += walk->stride) {
      volatile uint64_t* word = (volatile uint64_t*)address;
      if (write) {
        *word = pattern(address);
      } else if (*word != pattern(address)) {
        ++walk->wrong;
      }
      ++walk->pages;
      walk->last = address;
    }
  }
}

// Maps all RAM; returns the first address that is free after that.
static uint64_t map_ram(void) {
  uint64_t spare = FIRST;
  for (uint32_t i = 0; i < start_info->memory_map_entries; ++i) {
    uint64_t start;
    uint64_t end;
    if (ram_entry(i, &start, &end) && end > MAPPED_GIB * GIB) {
      for (uint64_t gib = start / GIB; gib * GIB < end; ++gib) {
        spare += map_gib(gib, spare);
      }
    }
  }
  return spare;
}

static uint64_t page_aligned(uint64_t value) {
  return (value + PAGE - 1) / PAGE * PAGE;
}

void test_touch(const struct argument* argument) {
  if (start_info->version == 0) {
    print("probe: touch needs a memory map\n");
    end_panic();
  }
  uint64_t spare = map_ram();
  struct walk steps = {.from = page_aligned(number_word("from", spare)),
                       .stride = page_aligned(number_word("stride", PAGE)),
                       .pages_max = (argument->given ? argument->number : 16) * MIB / PAGE};
  if (steps.from < spare) {
    steps.from = spare;
  }
  if (steps.stride == 0) {
    steps.stride = PAGE;
  }
  print_tsc_source();
  uint64_t start = tsc();
  walk(&steps, true);
  uint64_t ticks = tsc() - start;
  walk(&steps, false);
  print_value("touch_pages", steps.pages);
  print_hex_value("touch_from", steps.from);
  print_hex_value("touch_last", steps.last);
  print_value("touch_page_ticks", steps.pages == 0 ? 0 : ticks / steps.pages);
  print_value("touch_wrong", steps.wrong);
}
