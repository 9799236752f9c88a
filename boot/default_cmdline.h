// SPDX-License-Identifier: Apache-2.0
// The kernel command line of a VM whose configuration names none, and the reason of each word. No
// word removes a protection or the console; boot.cmdline replaces the whole, boot.append adds.
#pragma once

#include <string_view>

namespace vireo {

/// Words for every Linux kernel.
inline constexpr std::string_view kDefaultLinuxCmdline =
    // The console: COM1 is the only device that shows text, and a kernel without VGA would else
    // print nowhere.
    "console=ttyS0 "
    // Reset by one write to the keyboard controller, which works before ACPI is up as well; the
    // default order tries others first. It ends the VM with status 10.
    "reboot=k "
    // A panic resets at once instead of standing still for ever; that reset after the panic's text
    // is how a guest without the pvpanic module (any early panic) ends with status 11.
    "panic=-1 "
    // There is one UART. Debian's kernel probes four by default, and each probe of an absent one is
    // a row of port exits.
    "8250.nr_uarts=1 "
    // Each boot else holds every cipher against known answers: 0.2 s of 1.3 where it was measured.
    // That finds broken drivers and protects nothing; with fips=1 the kernel does it regardless.
    "cryptomgr.notests "
    // With one CPU the kernel else writes over the lock prefix of each of its atomic instructions,
    // and over all of them again when a second CPU comes: 0.13 s of 1.2. What stays is a prefix
    // that costs a few cycles while nobody contends for the line.
    "noreplace-smp";

/// Added while the VM has no PCI bus: the kernel else reads the configuration space of all 32 slots
/// by port exits before ACPI could tell it that there is none.
inline constexpr std::string_view kDefaultNoPciCmdline = "pci=off";

/// Kernels entered by PVH are not Linux (a Linux has its note): no word of ours would mean
/// anything.
inline constexpr std::string_view kDefaultPvhCmdline = "";

}  // namespace vireo
