// SPDX-License-Identifier: Apache-2.0
// The bzImage half of kernel_image.h: Documentation/x86/boot.rst, "The Real-Mode Kernel Header".
#include <algorithm>
#include <cstring>

#include <asm/bootparam.h>

#include <fmt/core.h>

#include "boot/kernel_image.h"

namespace vireo {

namespace {

static_assert(offsetof(boot_params, hdr) == kSetupHeaderOffset);
static_assert(sizeof(setup_header) <= kSetupHeaderMax);

constexpr std::uint64_t kSectorSize = 512;
constexpr std::uint8_t kDefaultSetupSectors = 4;
/// The jump instruction at 0x200: its operand tells where the header ends.
constexpr std::uint64_t kJumpOperandOffset = 0x201;
constexpr std::uint64_t kHeaderBase = 0x202;
/// xloadflags, and with it the 64-bit entry, exists from this version on.
constexpr std::uint16_t kVersion64Bit = 0x20c;
constexpr std::uint64_t kEntry64Offset = 0x200;
constexpr std::uint64_t kAlignmentMax = std::uint64_t{1} << 30;
constexpr std::uint64_t kCommandLineMax = 0xffff;

Result<setup_header> read_header(const ByteSource& source) {
  // The header as far as it goes: older kernels have a shorter one, the rest counts as 0.
  setup_header header = {};
  TRY_ASSIGN(const auto operand, source.read_object<std::uint8_t>(kJumpOperandOffset));
  const std::uint64_t size =
      std::min<std::uint64_t>(kHeaderBase + operand - kSetupHeaderOffset, sizeof(header));
  TRY(source.read(kSetupHeaderOffset, std::as_writable_bytes(std::span(&header, 1)).first(size)));
  return header;
}

Result<> check_header(const setup_header& header) {
  if (header.version < kVersion64Bit || (header.xloadflags & XLF_KERNEL_64) == 0) {
    return fail(ErrorCode::kBadInput,
                fmt::format("a bzImage (boot protocol {}.{}) without the 64-bit entry: a 32-bit or "
                            "very old kernel",
                            header.version >> 8, header.version & 0xff));
  }
  if ((header.loadflags & LOADED_HIGH) == 0) {
    return fail(ErrorCode::kBadInput, "a zImage, which is loaded below 1 MiB");
  }
  const std::uint64_t alignment = header.kernel_alignment;
  if (alignment < (std::uint64_t{2} << 20) || alignment > kAlignmentMax ||
      (alignment & (alignment - 1)) != 0) {
    return fail(ErrorCode::kBadInput,
                fmt::format("a damaged bzImage: kernel alignment {:#x}", alignment));
  }
  if (header.pref_address % alignment != 0 || header.pref_address < alignment ||
      header.pref_address > kKernelSizeMax) {
    return fail(ErrorCode::kBadInput, fmt::format("a damaged bzImage: preferred address {:#x}",
                                                  std::uint64_t{header.pref_address}));
  }
  if (header.init_size > kKernelSizeMax) {
    return fail(ErrorCode::kBadInput,
                fmt::format("a bzImage that needs {} MiB; a kernel takes at most 1 GiB",
                            header.init_size >> 20));
  }
  return {};
}

}  // namespace

Result<BzImage> read_bzimage(const ByteSource& source) {
  TRY_ASSIGN(const setup_header header, read_header(source));
  TRY(check_header(header));
  BzImage image;
  const std::uint64_t setup_sectors =
      header.setup_sects == 0 ? kDefaultSetupSectors : header.setup_sects;
  image.code_offset = (setup_sectors + 1) * kSectorSize;
  const std::uint64_t declared = std::uint64_t{header.syssize} * 16;
  const std::uint64_t present = source.size() - std::min(image.code_offset, source.size());
  // syssize counts paragraphs of 16 bytes, rounded up.
  if (declared <= kEntry64Offset || declared >= present + 16) {
    return fail(ErrorCode::kBadInput,
                fmt::format("a bzImage of {} bytes of which {} are there (truncated?)",
                            image.code_offset + declared, source.size()));
  }
  image.code_size = std::min(declared, present);
  if (std::uint64_t{header.payload_offset} + header.payload_length > image.code_size) {
    return fail(ErrorCode::kBadInput, "a damaged bzImage: its payload lies outside of the file");
  }
  image.payload_offset = image.code_offset + header.payload_offset;
  image.payload_size = header.payload_length;
  image.preferred_address = header.pref_address;
  image.init_size = header.init_size;
  image.alignment = header.kernel_alignment;
  image.cmdline_max = std::min<std::uint64_t>(header.cmdline_size, kCommandLineMax);
  image.initramfs_max = header.initrd_addr_max;
  const auto bytes = std::as_bytes(std::span(&header, 1));
  image.setup_header.assign(bytes.begin(), bytes.end());
  return image;
}

KernelImage packed_kernel(const BzImage& bzimage) {
  KernelImage kernel;
  kernel.packed = true;
  kernel.start = bzimage.preferred_address;
  kernel.end = kernel.start + std::max(bzimage.init_size, bzimage.code_size);
  kernel.entry = kernel.start + kEntry64Offset;
  kernel.extents = {
      {.address = kernel.start, .size = bzimage.code_size, .offset = bzimage.code_offset}};
  adopt_setup_header(kernel, bzimage);
  return kernel;
}

void adopt_setup_header(KernelImage& kernel, const BzImage& bzimage) {
  kernel.alignment = bzimage.alignment;
  kernel.cmdline_max = bzimage.cmdline_max;
  kernel.initramfs_max = bzimage.initramfs_max;
  kernel.setup_header = bzimage.setup_header;
}

}  // namespace vireo
