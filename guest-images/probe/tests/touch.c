// SPDX-License-Identifier: Apache-2.0
// probe=touch MIB: writes one word into each 4 KiB page of so much RAM (16 MiB without a number),
// then reads all of them back. RAM is what the memory map says, above 4 GiB too. The word from= is
// the address to begin at, 2 MiB without it; stride= the bytes from one page to the next.
#include "tests.h"

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define PAGE 4096
#define MAPPED_GIB 512

static bool ram_entry(uint32_t index, uint64_t* start, uint64_t* end) {
  const struct memory_map_entry* entry =
      (const struct memory_map_entry*)start_info->memory_map + index;
  uint64_t first = entry->address < free_memory() ? free_memory() : entry->address;
  *start = (first + PAGE - 1) / PAGE * PAGE;
  *end = (entry->address + entry->size) / PAGE * PAGE;
  if (*end > MAPPED_GIB * GIB) {
    *end = MAPPED_GIB * GIB;
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

static void map_ram(void) {
  for (uint32_t i = 0; i < start_info->memory_map_entries; ++i) {
    uint64_t address;
    uint64_t end;
    if (ram_entry(i, &address, &end)) {
      for (; address < end; address = (address / GIB + 1) * GIB) {
        map_gib_of(address);
      }
    }
  }
}

static uint64_t page_aligned(uint64_t value) {
  return (value + PAGE - 1) / PAGE * PAGE;
}

void test_touch(const struct argument* argument) {
  if (start_info->version == 0) {
    print("probe: touch needs a memory map\n");
    end_panic();
  }
  map_ram();
  struct walk steps = {.from = page_aligned(number_word("from", free_memory())),
                       .stride = page_aligned(number_word("stride", PAGE)),
                       .pages_max = (argument->given ? argument->number : 16) * MIB / PAGE};
  if (steps.from < free_memory()) {
    steps.from = free_memory();
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
