// SPDX-License-Identifier: Apache-2.0
// The ACPI tables of a vireo VM (ACPI 6.5, chapter 5): hardware-reduced, so that a guest probes
// nothing of a PC's that is not there.
#pragma once

#include "arch/arch.h"

namespace vireo::arch {

/// The DSDT alone, for tests that decompile it.
std::vector<std::uint8_t> make_dsdt(std::span<const MmioDevice> mmio_devices, bool pci);

/// Writes RSDP, XSDT, FADT, MADT and DSDT, and MCFG where there is PCI; returns the address of the
/// RSDP. kSystem where so many devices do not fit.
Result<GuestAddress> write_acpi_tables(GuestMemory& memory, const PlatformConfig& config);

}  // namespace vireo::arch
