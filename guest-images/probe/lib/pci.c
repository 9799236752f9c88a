// SPDX-License-Identifier: Apache-2.0
#include "pci.h"

#include "machine.h"

// ACPI's MCFG: where its only entry that matters here has the address.
#define MCFG_ADDRESS 44

// Configuration space (PCI Express 4.0 §7.5).
#define ECAM_SLOT_SHIFT 15
#define COMMAND 0x04
#define COMMAND_MEMORY 0x2
#define COMMAND_BUS_MASTER 0x4
#define BAR_0 0x10
#define BAR_IO 0x1
#define BAR_64 0x4
#define BAR_FLAGS 0xfu
#define CAPABILITIES 0x34

// MSI-X (§7.7.2).
#define MSIX_CONTROL 2
#define MSIX_TABLE 4
#define MSIX_ENABLE 0x8000
#define MSIX_BAR_MASK 0x7u
#define ENTRY_ADDRESS 0
#define ENTRY_ADDRESS_HIGH 4
#define ENTRY_DATA 8
#define ENTRY_CONTROL 12

uint64_t pci_ecam(void) {
  uint64_t ecam = number_word("ecam", 0);
  if (ecam == 0) {
    uint64_t table = acpi_table("MCFG");
    if (table != 0) {
      memcpy(&ecam, (const void*)(table + MCFG_ADDRESS), sizeof(ecam));
    }
  }
  return ecam;
}

uint64_t pci_function(uint64_t ecam, unsigned slot) {
  return ecam + ((uint64_t)slot << ECAM_SLOT_SHIFT);
}

uint64_t pci_next_capability(uint64_t function, uint64_t after, uint8_t kind) {
  uint8_t at = mmio_read8(after == 0 ? function + CAPABILITIES : after + 1);
  while (at != 0 && mmio_read8(function + at) != kind) {
    at = mmio_read8(function + at + 1);
  }
  return at == 0 ? 0 : function + at;
}

// The next piece of the window that nobody has.
static uint64_t place_in_window(uint64_t size) {
  static uint64_t next;
  if (next == 0) {
    next = number_word("pci_window", 0);
  }
  if (next == 0) {
    print("probe: a BAR has no address: name a window for it, pci_window=ADDRESS\n");
    end_panic();
  }
  uint64_t address = (next + size - 1) / size * size;
  next = address + size;
  return address;
}

uint64_t pci_bar(uint64_t function, unsigned index) {
  uint64_t bar = function + BAR_0 + 4 * index;
  uint32_t low = mmio_read32(bar);
  if ((low & BAR_IO) != 0) {
    print("probe: a structure lies in I/O ports\n");
    end_panic();
  }
  bool wide = (low & BAR_64) != 0;
  uint64_t address = low & ~BAR_FLAGS;
  if (wide) {
    address |= (uint64_t)mmio_read32(bar + 4) << 32;
  }
  if (address == 0) {
    mmio_write32(bar, ~0u);
    // Sizes of 4 GiB and more have no place below 4 GiB.
    uint32_t size = ~(mmio_read32(bar) & ~BAR_FLAGS) + 1;
    address = place_in_window(size);
    mmio_write32(bar, (uint32_t)address);
    if (wide) {
      mmio_write32(bar + 4, (uint32_t)(address >> 32));
    }
  }
  map_gib_of(address);
  return address;
}

void pci_enable(uint64_t function) {
  uint16_t command = mmio_read16(function + COMMAND);
  mmio_write16(function + COMMAND, command | COMMAND_MEMORY | COMMAND_BUS_MASTER);
}

void pci_enable_msix(uint64_t function, uint64_t capability, unsigned irq) {
  uint32_t place = mmio_read32(capability + MSIX_TABLE);
  uint64_t entry = pci_bar(function, place & MSIX_BAR_MASK) + (place & ~MSIX_BAR_MASK);
  // Messages to the local APIC (Intel SDM 3A §11.11): its own address, one of its vectors.
  mmio_write32(entry + ENTRY_ADDRESS, LOCAL_APIC | (apic_read(APIC_ID) >> 24 << 12));
  mmio_write32(entry + ENTRY_ADDRESS_HIGH, 0);
  mmio_write32(entry + ENTRY_DATA, irq_vector(irq));
  mmio_write32(entry + ENTRY_CONTROL, 0);
  mmio_write16(capability + MSIX_CONTROL, mmio_read16(capability + MSIX_CONTROL) | MSIX_ENABLE);
}
