// SPDX-License-Identifier: Apache-2.0
// RAM to take, and the functions that a compiler may call without being asked, also in freestanding
// code.
#include "probe.h"

#define FIRST ((uint64_t)2 << 20)
#define GIB ((uint64_t)1 << 30)
#define PAGE 4096
#define POINTERS 512  // one table of them maps 512 GiB
#define PTE_LINK 0x27
#define PTE_PAGE 0xe7

extern volatile uint64_t page_pointers[POINTERS];

static uint64_t first_free = FIRST;

static uint64_t end_of_first_ram(void) {
  if (start_info->version == 0) {
    return 0;
  }
  const struct memory_map_entry* map = (const struct memory_map_entry*)start_info->memory_map;
  for (uint32_t i = 0; i < start_info->memory_map_entries; ++i) {
    if (map[i].type == MEMORY_MAP_RAM && map[i].address <= FIRST &&
        FIRST - map[i].address < map[i].size) {
      return map[i].address + map[i].size;
    }
  }
  return 0;
}

void* allocate(uint64_t size, uint64_t alignment) {
  uint64_t address = (first_free + alignment - 1) / alignment * alignment;
  uint64_t end = end_of_first_ram();
  if (address > end || size > end - address) {
    print("probe: not enough RAM behind 2 MiB\n");
    end_panic();
  }
  first_free = address + size;
  return (void*)address;
}

uint64_t free_memory(void) {
  return first_free;
}

void map_gib_of(uint64_t address) {
  uint64_t gib = address / GIB;
  if (gib >= POINTERS) {
    print_hex_value("beyond_512_gib", address);
    end_panic();
  }
  if (page_pointers[gib] != 0) {
    return;
  }
  // The page tables lie in memory that CPL 3 may write.
  volatile uint64_t* directory = allocate(PAGE, PAGE);
  for (uint64_t i = 0; i < 512; ++i) {
    directory[i] = gib * GIB + (i << 21) + PTE_PAGE;
  }
  page_pointers[gib] = (uint64_t)directory + PTE_LINK;
}

void* memcpy(void* to, const void* from, size_t size) {
  void* end = to;
  __asm__ volatile("rep movsb" : "+D"(end), "+S"(from), "+c"(size) : : "memory");
  return to;
}

void* memset(void* to, int value, size_t size) {
  void* end = to;
  __asm__ volatile("rep stosb" : "+D"(end), "+c"(size) : "a"(value) : "memory");
  return to;
}
