// SPDX-License-Identifier: Apache-2.0
// probe=touch MIB: writes one word into each 4 KiB page of so much RAM (16 MiB without a number),
// from the address in the word from= on (2 MiB without it), then reads all of them back; RAM is
// what the memory map says, above 4 GiB too.
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

struct progress {
  uint64_t pages;
  uint64_t wrong;
};

static void walk(uint64_t first_page, uint64_t pages, bool write, struct progress* progress) {
  for (uint32_t i = 0; i < start_info->memory_map_entries; ++i) {
    uint64_t address;
    uint64_t end;
    if (!ram_entry(i, &address, &end)) {
      continue;
    }
    if (address < first_page) {
      address = first_page;
    }
    for (; address < end && progress->pages < pages; address += PAGE, ++progress->pages) {
      volatile uint64_t* word = (volatile uint64_t*)address;
      if (write) {
        *word = pattern(address);
      } else if (*word != pattern(address)) {
        ++progress->wrong;
      }
    }
  }
}

void test_touch(const struct argument* argument) {
  uint64_t pages = (argument->given ? argument->number : 16) * MIB / PAGE;
  if (start_info->version == 0) {
    print("probe: touch needs a memory map\n");
    end_panic();
  }
  uint64_t first_page = FIRST;
  for (uint32_t i = 0; i < start_info->memory_map_entries; ++i) {
    uint64_t start;
    uint64_t end;
    if (ram_entry(i, &start, &end) && end > MAPPED_GIB * GIB) {
      for (uint64_t gib = start / GIB; gib * GIB < end; ++gib) {
        first_page += map_gib(gib, first_page);
      }
    }
  }
  uint64_t from = number_word("from", first_page);
  if (from > first_page) {
    first_page = (from + PAGE - 1) / PAGE * PAGE;
  }
  print_tsc_source();
  struct progress written = {0, 0};
  uint64_t start = tsc();
  walk(first_page, pages, true, &written);
  uint64_t ticks = tsc() - start;
  struct progress read = {0, 0};
  walk(first_page, pages, false, &read);
  print_value("touch_pages", written.pages);
  print_value("touch_page_ticks", written.pages == 0 ? 0 : ticks / written.pages);
  print_value("touch_wrong", read.wrong);
}
