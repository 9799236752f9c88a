// SPDX-License-Identifier: Apache-2.0
// ACPI tables by their signatures (ACPI 6.5 §5.2).
#include "probe.h"

#define BIOS_AREA 0xe0000
#define BIOS_AREA_END 0x100000
#define RSDP_ALIGNMENT 16
#define RSDP_SIGNATURE 0x2052545020445352  // "RSD PTR "
#define RSDP_REVISION 15
#define RSDP_RSDT 16
#define RSDP_XSDT 24
#define TABLE_LENGTH 4
#define TABLE_HEADER 36

static uint64_t word_at(uint64_t address, size_t size) {
  uint64_t value = 0;
  memcpy(&value, (const void*)address, size);
  return value;
}

// What the VMM told, else the BIOS's read-only area.
static uint64_t find_rsdp(void) {
  if (start_info->rsdp != 0) {
    return start_info->rsdp;
  }
  for (uint64_t at = BIOS_AREA; at < BIOS_AREA_END; at += RSDP_ALIGNMENT) {
    if (word_at(at, 8) == RSDP_SIGNATURE) {
      return at;
    }
  }
  return 0;
}

uint64_t acpi_table(const char* signature) {
  uint64_t rsdp = find_rsdp();
  if (rsdp == 0) {
    return 0;
  }
  bool extended = word_at(rsdp + RSDP_REVISION, 1) >= 2;
  size_t entry_size = extended ? 8 : 4;
  uint64_t root = word_at(rsdp + (extended ? RSDP_XSDT : RSDP_RSDT), entry_size);
  uint64_t end = root + word_at(root + TABLE_LENGTH, 4);
  for (uint64_t at = root + TABLE_HEADER; at + entry_size <= end; at += entry_size) {
    uint64_t table = word_at(at, entry_size);
    if (word_at(table, 4) == word_at((uint64_t)signature, 4)) {
      return table;
    }
  }
  return 0;
}
