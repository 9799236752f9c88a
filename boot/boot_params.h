// SPDX-License-Identifier: Apache-2.0
// What a kernel is told at its entry: the zero page of the Linux boot protocol, or PVH's start
// info; memory map, command line, initramfs, seed of its random numbers.
//
// Documentation/x86/{boot,zero-page}.rst; xen/include/public/arch-x86/hvm/start_info.h. Addresses
// are those of arch/x86_64/layout.h. Called by GuestBoot before any vCPU runs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "boot/kernel_image.h"
#include "src/base/address.h"
#include "src/memory/guest_memory.h"

namespace vireo {

enum class E820Type : std::uint32_t { kRam = 1, kReserved = 2 };

struct E820Entry {
  GuestRange range;
  E820Type type;
};

/// RAM and what lies reserved below 1 MiB: the end of conventional memory, ACPI and SMBIOS.
std::vector<E820Entry> memory_map(const GuestMemory& memory);

inline constexpr std::size_t kRngSeedSize = 32;

struct BootParams {
  std::string cmdline;
  GuestRange initramfs = *GuestRange::create(GuestAddress(0), 0);  ///< empty: there is none
  GuestAddress rsdp;                                               ///< 0: there is no ACPI
  std::span<const std::byte> setup_header;  ///< of the bzImage; empty for an ELF kernel
  /// The image was placed at random: the kernel then randomises its memory regions too.
  bool kaslr = false;
  std::array<std::byte, kRngSeedSize> rng_seed = {};
};

/// Both write to low memory, which must exist, and return the address that the entry is given.
GuestAddress write_zero_page(GuestMemory& memory, const BootParams& params);
GuestAddress write_pvh_start_info(GuestMemory& memory, const BootParams& params);

/// Whether a kernel command line has the word, or (`word` ends in '=') a word that begins so.
bool has_word(std::string_view cmdline, std::string_view word);
/// Adds words before " -- ", behind which all belongs to init.
std::string add_words(const std::string& cmdline, std::string_view words);

}  // namespace vireo
