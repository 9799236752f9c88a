// SPDX-License-Identifier: Apache-2.0
// What a kernel file is, found by its content and never by its name, and what of it goes where.
//
//   ELF64 x86-64 with a note of owner "Linux"  -> entered by the 64-bit Linux boot protocol
//   ELF64 x86-64 with a PVH note (Xen, 18)     -> entered by PVH
//   bzImage of protocol 2.12 or newer, 64-bit  -> unpacked on the host into the first kind, or
//                                                 entered at its own decompressor's 64-bit entry
//   anything else                              -> refused by its right name
//
// Every input is hostile: each number is checked before it is used. Pure functions over a
// ByteSource; any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "boot/byte_source.h"
#include "src/base/error.h"

namespace vireo {

/// No kernel that we load takes more than this, and no payload may unpack to more.
inline constexpr std::uint64_t kKernelSizeMax = std::uint64_t{1} << 30;
/// setup_header of the Linux boot protocol: from here in the file and in the zero page …
inline constexpr std::uint64_t kSetupHeaderOffset = 0x1f1;
/// … and never longer than this (the zero page has other fields behind it).
inline constexpr std::size_t kSetupHeaderMax = 0x290 - kSetupHeaderOffset;

enum class BootProtocol : std::uint8_t { kLinux64, kPvh };

/// Bytes of the image that are copied to guest memory; what lies between extents is zero.
struct Extent {
  std::uint64_t address = 0;  ///< guest-physical, where the kernel was linked to be
  std::uint64_t size = 0;
  std::uint64_t offset = 0;  ///< in the image's ByteSource
};

/// A kernel that is ready to be copied. `start`, `end` and `entry` are guest-physical and as
/// linked; a relocatable kernel may be moved as a whole.
struct KernelImage {
  BootProtocol protocol = BootProtocol::kLinux64;
  /// bzImage entered as it is: its own code unpacks and randomises it.
  bool packed = false;
  std::uint64_t entry = 0;
  std::uint64_t start = 0;
  std::uint64_t end = 0;  ///< first address behind what the kernel needs, bss and brk included
  std::uint64_t alignment = 0;
  /// The virtual address that `start` was linked at.
  std::uint64_t virtual_start = 0;
  /// What may be a relocation table, in the ByteSource; none where size is 0.
  std::uint64_t relocations_offset = 0;
  std::uint64_t relocations_size = 0;
  /// Limits that the kernel states (or that kernels without a header have).
  std::uint64_t cmdline_max = 0;    ///< bytes, without the terminating NUL
  std::uint64_t initramfs_max = 0;  ///< highest address that the initramfs may touch
  /// setup_header as in the bzImage; empty for a kernel that came as ELF.
  std::vector<std::byte> setup_header;
  std::vector<Extent> extents;  ///< ascending, not overlapping
};

/// A bzImage, as its setup header describes it.
struct BzImage {
  std::vector<std::byte> setup_header;
  std::uint64_t code_offset = 0;  ///< of the protected-mode part in the file
  std::uint64_t code_size = 0;
  std::uint64_t payload_offset = 0;  ///< in the file; the compressed vmlinux
  std::uint64_t payload_size = 0;
  std::uint64_t preferred_address = 0;
  std::uint64_t init_size = 0;  ///< memory that its decompressor needs from where it is loaded
  std::uint64_t alignment = 0;
  std::uint64_t cmdline_max = 0;
  std::uint64_t initramfs_max = 0;
};

enum class KernelKind : std::uint8_t { kElf, kBzImage };

/// Which of the two it is. Everything else is kBadInput with the reason, and with the name of the
/// architecture where the file is a kernel for another one.
Result<KernelKind> identify_kernel(const ByteSource& source);

/// The layout of an ELF kernel. `must_be_linux`: it came out of a bzImage, so no note is needed.
Result<KernelImage> read_elf_kernel(const ByteSource& source, bool must_be_linux);

Result<BzImage> read_bzimage(const ByteSource& source);

/// A bzImage as something to be copied and entered as it is.
KernelImage packed_kernel(const BzImage& bzimage);

/// Takes over what only the bzImage's header knows, for the kernel that came out of it.
void adopt_setup_header(KernelImage& kernel, const BzImage& bzimage);

}  // namespace vireo
