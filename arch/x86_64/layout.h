// SPDX-License-Identifier: Apache-2.0
// Every guest-physical constant of an x86-64 vireo VM.
//
//   0x0000_0000  +----------------------------+
//                | RAM (real-mode area)       |
//   0x0000_0500  | GDT, boot page tables …    |  kGdt, kPageTables
//   0x0000_6000  | PVH start info, memory map |  kPvhStartInfo
//   0x0000_7000  | zero page (boot_params)    |  kZeroPage
//   0x0002_0000  | command line               |  kCommandLine
//   0x0003_0000  | setup_data (RNG seed …)    |  kSetupData
//   0x0009_fc00  +----------------------------+  kLowMemoryEnd
//                | (no RAM in the e820)       |
//   0x000e_0000  | RSDP, ACPI tables          |  kRsdp, kAcpiTables
//   0x000f_0000  | SMBIOS entry and tables    |  kSmbios
//   0x0010_0000  +----------------------------+  kHighMemoryStart
//                | RAM: kernel …, initramfs   |  initramfs as high as it may lie
//   0xc000_0000  +----------------------------+  kMmioHoleStart: the hole under 4 GiB
//                | Firecracker's boot timer   |  kBootTimer
//   0xc000_1000  | virtio-mmio windows        |  kVirtioMmio, kVirtioMmioSize each
//   0xd000_0000  | PCI windows                |  kPciMmio32
//   0xe000_0000  | PCI configuration (ECAM)   |  kPciEcam
//   0xfec0_0000  | IOAPIC                     |
//   0xfee0_0000  | local APIC                 |
//   0xfeff_b000  | KVM's identity map and TSS |  kKvmIdentityMap, kKvmTss
//  0x1_0000_0000 +----------------------------+  kHole64End
//                | RAM above 4 GiB            |
//                +----------------------------+
#pragma once

#include <cstdint>

#include "src/base/address.h"

namespace vireo::layout {

inline constexpr GuestAddress kGdt{0x500};
inline constexpr GuestAddress kPvhStartInfo{0x6000};
inline constexpr std::uint64_t kPvhStartInfoSize = 0x1000;
inline constexpr GuestAddress kZeroPage{0x7000};
inline constexpr GuestAddress kBootStack{0x8ff0};
inline constexpr GuestAddress kPageTables{0x9000};
inline constexpr GuestAddress kCommandLine{0x20000};
inline constexpr std::uint64_t kCommandLineMax = 0x10000;
inline constexpr GuestAddress kSetupData{0x30000};
inline constexpr GuestAddress kLowMemoryEnd{0x9fc00};
inline constexpr GuestAddress kRsdp{0xe0000};
inline constexpr GuestAddress kAcpiTables{0xe0040};
inline constexpr std::uint64_t kAcpiTablesMax = 0x10000 - 0x40 - 0x10;
/// Virtual Machine Generation ID, 16 bytes.
inline constexpr GuestAddress kVmGenId{0xefff0};
inline constexpr GuestAddress kSmbios{0xf0000};
inline constexpr std::uint64_t kSmbiosMax = 0x10000;
inline constexpr GuestAddress kHighMemoryStart{0x100000};

inline constexpr GuestAddress kMmioHoleStart{0xc0000000};
inline constexpr GuestAddress kBootTimer{0xc0000000};
inline constexpr std::uint64_t kBootTimerSize = 0x1000;
inline constexpr GuestAddress kVirtioMmio{0xc0001000};
inline constexpr std::uint64_t kVirtioMmioSize = 0x1000;
inline constexpr GuestAddress kPciMmio32{0xd0000000};
inline constexpr GuestAddress kPciEcam{0xe0000000};
/// Of one bus.
inline constexpr std::uint64_t kPciEcamSize = 0x100000;
inline constexpr GuestAddress kIoApic{0xfec00000};
inline constexpr GuestAddress kLocalApic{0xfee00000};
inline constexpr GuestAddress kKvmIdentityMap{0xfeffb000};
inline constexpr GuestAddress kKvmTss{0xfeffc000};
inline constexpr GuestAddress kHole64End{0x100000000};

// Port I/O.
inline constexpr std::uint16_t kI8042DataPort = 0x60;
inline constexpr std::uint16_t kI8042CommandPort = 0x64;
inline constexpr std::uint16_t kCmosIndexPort = 0x70;
inline constexpr std::uint16_t kCmosDataPort = 0x71;
inline constexpr std::uint16_t kMarkPort = 0x3f0;
inline constexpr std::uint16_t kCom1Port = 0x3f8;
inline constexpr std::uint16_t kPvpanicPort = 0x505;
/// ACPI sleep control and sleep status (hardware-reduced), one byte each.
inline constexpr std::uint16_t kSleepControlPort = 0x600;
inline constexpr std::uint16_t kSleepStatusPort = 0x601;
/// SLP_TYP of S5 in the DSDT's _S5 package.
inline constexpr std::uint8_t kSleepTypeS5 = 5;
/// ACPI reset register: a byte of ours, so that it works without an i8042.
inline constexpr std::uint16_t kResetPort = 0x602;
inline constexpr std::uint8_t kResetValue = 0x1;
/// The generic event device's event register: one 32-bit read takes all pending events.
inline constexpr std::uint16_t kGedPort = 0x604;

// Global system interrupts (IOAPIC pins). Edge-triggered, active high.
inline constexpr std::uint32_t kKeyboardGsi = 1;
inline constexpr std::uint32_t kCom1Gsi = 4;
inline constexpr std::uint32_t kGedGsi = 9;
/// virtio-mmio devices take 5…8 and 10…23 in this order, leaving out what is used above.
inline constexpr std::uint32_t kFirstDeviceGsi = 5;
inline constexpr std::uint32_t kLastGsi = 23;
/// The last that the PIC has: a guest without ACPI knows of no IOAPIC.
inline constexpr std::uint32_t kLastPicGsi = 15;
/// How many devices have a line of their own.
inline constexpr std::size_t kDeviceGsis = kLastGsi - kFirstDeviceGsi;
/// The line of the device with this number: all but the event device's.
constexpr std::uint32_t device_gsi(std::size_t number) {
  const auto gsi = kFirstDeviceGsi + static_cast<std::uint32_t>(number);
  return gsi < kGedGsi ? gsi : gsi + 1;
}
/// The window of the virtio-mmio device with this number.
constexpr GuestAddress virtio_mmio_window(std::size_t number) {
  return GuestAddress(kVirtioMmio.value() + number * kVirtioMmioSize);
}

// Events of the generic event device: bits of its register.
inline constexpr std::uint32_t kGedPowerButton = 1U << 0;
inline constexpr std::uint32_t kGedVmGenId = 1U << 1;
inline constexpr std::uint32_t kGedVmClock = 1U << 2;
inline constexpr std::uint32_t kGedPciHotplug = 1U << 3;
inline constexpr std::uint32_t kGedMemoryHotplug = 1U << 4;

}  // namespace vireo::layout
