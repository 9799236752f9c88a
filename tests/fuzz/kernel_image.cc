// SPDX-License-Identifier: Apache-2.0
// Fuzz target: a kernel file as GuestBoot treats it, from its first bytes to guest memory. ELF
// headers and notes, bzImage header, payloads of all compressions, relocation table, placement.
#include "boot/kernel_image.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "boot/payload.h"
#include "boot/placement.h"
#include "boot/relocate.h"
#include "src/memory/guest_memory.h"

namespace vireo {
namespace {

constexpr std::uint64_t kRamSize = std::uint64_t{32} << 20;
/// Far below the real limit: a bomb should be refused, not waited for.
constexpr std::uint64_t kUnpackedMax = std::uint64_t{4} << 20;

GuestMemory& guest_memory() {
  static std::vector<std::byte> ram(kRamSize);
  static const std::unique_ptr<GuestMemory> memory = GuestMemory::adopt(GuestAddress(0), ram);
  return *memory;
}

std::optional<RelocationTable> relocations(const KernelImage& kernel, const ByteSource& source) {
  std::vector<std::uint32_t> words(kernel.relocations_size / sizeof(std::uint32_t));
  CHECK(source.read(kernel.relocations_offset, std::as_writable_bytes(std::span(words))));
  auto table =
      RelocationTable::create(std::move(words), kernel.virtual_start, kernel.end - kernel.start);
  if (!table) {
    return std::nullopt;
  }
  return std::move(*table);
}

/// Whatever the parser accepted has to go into memory without a further check failing.
void load(const KernelImage& kernel, const ByteSource& source) {
  const auto placement = place_kernel(kernel,
                                      {.ram_end = kRamSize,
                                       .initramfs_size = 4096,
                                       .random_physical = true,
                                       .random_virtual = true},
                                      [](std::uint64_t bound) { return bound - 1; });
  if (!placement) {
    return;
  }
  const GuestMemory& memory = guest_memory();
  for (const Extent& extent : kernel.extents) {
    const auto target =
        memory.slice(GuestAddress(extent.address + placement->physical_delta), extent.size);
    CHECK(target.has_value());
    CHECK(source.read(extent.offset, *target));
  }
  const auto image = memory.slice(GuestAddress(kernel.start + placement->physical_delta),
                                  kernel.end - kernel.start);
  CHECK(image.has_value());
  CHECK(kernel.entry >= kernel.start && kernel.entry < kernel.end);
  if (const auto table = relocations(kernel, source)) {
    table->apply(*image, placement->virtual_delta);
  }
}

void take_bzimage(const ByteSource& source) {
  const auto bzimage = read_bzimage(source);
  if (!bzimage) {
    return;
  }
  load(packed_kernel(*bzimage), source);
  std::vector<std::byte> payload(bzimage->payload_size);
  CHECK(source.read(bzimage->payload_offset, payload));
  const Compression compression = identify_payload(payload);
  if (compression == Compression::kUnknown) {
    return;
  }
  const auto unpacked = unpack_payload(payload, compression, kUnpackedMax);
  if (!unpacked) {
    return;
  }
  const ByteSource vmlinux(unpacked->bytes());
  if (auto kernel = read_elf_kernel(vmlinux, true)) {
    adopt_setup_header(*kernel, *bzimage);
    load(*kernel, vmlinux);
  }
}

void take_kernel(const ByteSource& source) {
  const auto kind = identify_kernel(source);
  if (!kind) {
    return;
  }
  if (*kind == KernelKind::kBzImage) {
    take_bzimage(source);
  } else if (const auto kernel = read_elf_kernel(source, false)) {
    load(*kernel, source);
  }
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vireo::take_kernel(vireo::ByteSource(std::as_bytes(std::span(data, size))));
  return 0;
}
