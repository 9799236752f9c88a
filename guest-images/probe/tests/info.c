// SPDX-License-Identifier: Apache-2.0
// What the VMM told at the start: command line, memory map, ACPI, modules, the TSC's rate.
#include "tests.h"

void test_info(const struct argument* argument) {
  (void)argument;
  print_text_value("cmdline", command_line);
  print_value("pvh_version", start_info->version);
  print_value("modules", start_info->module_count);
  print_hex_value("rsdp", start_info->rsdp);
  print_tsc_source();
  print_hex_value("apic_version", apic_read(APIC_VERSION));
  if (start_info->version == 0) {
    return;
  }
  const struct memory_map_entry* map = (const struct memory_map_entry*)start_info->memory_map;
  uint64_t ram = 0;
  for (uint32_t i = 0; i < start_info->memory_map_entries; ++i) {
    print_hex_value("map_address", map[i].address);
    print_hex_value("map_size", map[i].size);
    print_value("map_type", map[i].type);
    if (map[i].type == MEMORY_MAP_RAM) {
      ram += map[i].size;
    }
  }
  print_value("ram_bytes", ram);
}
