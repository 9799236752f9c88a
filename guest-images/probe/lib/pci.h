// SPDX-License-Identifier: Apache-2.0
// Bus 0 of PCI Express: configuration spaces by ECAM, BARs, capabilities, MSI-X.
#ifndef VIREO_PROBE_PCI_H
#define VIREO_PROBE_PCI_H

#include "probe.h"

#define PCI_SLOTS 32

#define PCI_CAPABILITY_VENDOR 0x09
#define PCI_CAPABILITY_MSIX 0x11

// Address of the configuration spaces of bus 0: the word ecam=, else ACPI's MCFG; 0 where there are
// none.
uint64_t pci_ecam(void);
// Address of the configuration space of a slot's function 0.
uint64_t pci_function(uint64_t ecam, unsigned slot);
// The capability of this kind that follows the one at `after` (0: the first); 0 where none does.
uint64_t pci_next_capability(uint64_t function, uint64_t after, uint8_t kind);
// Memory of a BAR. One that no firmware has given an address gets one in the window that the word
// pci_window= names.
uint64_t pci_bar(uint64_t function, unsigned index);
// Memory accesses and messages on.
void pci_enable(uint64_t function);
// Switches MSI-X on, with all its messages masked but the first, which comes as irq_vector(irq).
void pci_enable_msix(uint64_t function, uint64_t capability, unsigned irq);

#endif
