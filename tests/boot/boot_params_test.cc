// SPDX-License-Identifier: Apache-2.0
#include "boot/boot_params.h"

#include <cstring>

#include <sys/mman.h>

#include "arch/x86_64/layout.h"
#include "boot/default_cmdline.h"
#include "boot/placement.h"
#include "src/base/endian.h"
#include "tests/boot/kernel_builder.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

using namespace testing;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

GuestRange range(std::uint64_t start, std::uint64_t size) {
  return *GuestRange::create(GuestAddress(start), size);
}

std::unique_ptr<GuestMemory> memory_of(std::span<const GuestRange> ranges) {
  auto memory = GuestMemory::create(ranges, {});
  REQUIRE(memory);
  return std::move(*memory);
}

TEST_CASE("boot params: the zero page tells the kernel what it needs") {
  const std::array ranges = {range(0, 3072 * kMiB), range(4096 * kMiB, 1024 * kMiB)};
  const auto memory = memory_of(ranges);
  BootParams params{
      .cmdline = "console=ttyS0", .initramfs = range(0x7000000, 12345), .rsdp = layout::kRsdp};
  params.rng_seed.fill(std::byte{0xa5});
  CHECK(write_zero_page(*memory, params) == layout::kZeroPage);
  const auto page = memory->read_object<boot_params>(layout::kZeroPage);
  REQUIRE(page);
  CHECK(page->acpi_rsdp_addr == 0xe0000);
  CHECK(page->hdr.boot_flag == 0xaa55);
  CHECK(page->hdr.header == 0x53726448);
  CHECK(page->hdr.type_of_loader == 0xff);
  CHECK(page->hdr.loadflags == LOADED_HIGH);
  CHECK(page->hdr.cmd_line_ptr == layout::kCommandLine.value());
  CHECK(page->hdr.ramdisk_image == 0x7000000);
  CHECK(page->hdr.ramdisk_size == 12345);
  CHECK(page->sentinel == 0);
  REQUIRE(page->e820_entries == 5);
  const auto entry = [&](std::size_t i) {
    return std::array<std::uint64_t, 3>{page->e820_table[i].addr, page->e820_table[i].size,
                                        page->e820_table[i].type};
  };
  CHECK(entry(0) == std::array<std::uint64_t, 3>{0, 0x9fc00, 1});
  CHECK(entry(1) == std::array<std::uint64_t, 3>{0x9fc00, 0x400, 2});
  CHECK(entry(2) == std::array<std::uint64_t, 3>{0xe0000, 0x20000, 2});
  CHECK(entry(3) == std::array<std::uint64_t, 3>{0x100000, 0xc0000000 - 0x100000, 1});
  CHECK(entry(4) == std::array<std::uint64_t, 3>{0x100000000, 0x40000000, 1});

  std::array<char, 14> line = {};
  REQUIRE(memory->read(layout::kCommandLine, std::as_writable_bytes(std::span(line))));
  CHECK(std::string(line.data()) == "console=ttyS0");

  REQUIRE(page->hdr.setup_data == layout::kSetupData.value());
  const auto seed = memory->read_object<std::array<le32, 12>>(layout::kSetupData);
  CHECK((*seed)[0] == 0);
  CHECK((*seed)[1] == 0);
  CHECK((*seed)[2] == 9);  // SETUP_RNG_SEED
  CHECK((*seed)[3] == 32);
  CHECK((*seed)[4] == 0xa5a5a5a5);
  CHECK((*seed)[11] == 0xa5a5a5a5);
}

TEST_CASE("boot params: a bzImage's own header is passed on, with KASLR's flag set or cleared") {
  const std::array ranges = {range(0, 64 * kMiB)};
  const auto memory = memory_of(ranges);
  setup_header header = {};
  header.boot_flag = 0xaa55;
  header.version = 0x20d;
  header.loadflags = LOADED_HIGH | KASLR_FLAG;
  header.init_size = 0x123000;
  BootParams params{.setup_header = std::as_bytes(std::span(&header, 1))};
  write_zero_page(*memory, params);
  const auto without = memory->read_object<boot_params>(layout::kZeroPage)->hdr;
  CHECK(without.version == 0x20d);
  CHECK(without.init_size == 0x123000);
  CHECK(without.loadflags == LOADED_HIGH);
  CHECK(without.type_of_loader == 0xff);
  params.kaslr = true;
  write_zero_page(*memory, params);
  CHECK(memory->read_object<boot_params>(layout::kZeroPage)->hdr.loadflags ==
        (LOADED_HIGH | KASLR_FLAG));
}

TEST_CASE("boot params: PVH's start info names memory map, initramfs and command line") {
  const std::array ranges = {range(0, 64 * kMiB)};
  const auto memory = memory_of(ranges);
  BootParams params{.cmdline = "bench", .initramfs = range(0x3000000, 4097), .rsdp = layout::kRsdp};
  const GuestAddress address = write_pvh_start_info(*memory, params);
  CHECK(address == layout::kPvhStartInfo);
  const auto words = [&](std::uint64_t at) { return *memory->read_object<le32>(GuestAddress(at)); };
  const auto longs = [&](std::uint64_t at) { return *memory->read_object<le64>(GuestAddress(at)); };
  const std::uint64_t base = address.value();
  CHECK(words(base) == 0x336ec578);
  CHECK(words(base + 4) == 1);
  CHECK(words(base + 12) == 1);
  const std::uint64_t module = longs(base + 16);
  CHECK(longs(module) == 0x3000000);
  CHECK(longs(module + 8) == 4097);
  CHECK(longs(base + 24) == layout::kCommandLine.value());
  CHECK(longs(base + 32) == 0xe0000);
  const std::uint64_t map = longs(base + 40);
  REQUIRE(words(base + 48) == 4);
  CHECK(longs(map + 3UL * 24) == 0x100000);
  CHECK(longs(map + 3UL * 24 + 8) == 63 * kMiB);
  CHECK(words(map + 3UL * 24 + 16) == 1);

  params.initramfs = range(0, 0);
  write_pvh_start_info(*memory, params);
  CHECK(words(base + 12) == 0);
  CHECK(longs(base + 16) == 0);
}

TEST_CASE("boot params: words of a command line") {
  CHECK(has_word("quiet nokaslr", "nokaslr"));
  CHECK(has_word("nokaslr", "nokaslr"));
  CHECK_FALSE(has_word("xnokaslr nokaslr=1 nokaslrx", "nokaslr"));
  CHECK(has_word("a mem=64M", "mem="));
  CHECK_FALSE(has_word("a memmap=64M", "mem="));
  CHECK_FALSE(has_word("", "x"));
  CHECK(add_words("", "a b") == "a b");
  CHECK(add_words("x", "") == "x");
  CHECK(add_words("x", "a") == "x a");
  CHECK(add_words("x ", "a") == "x a");
  CHECK(add_words("x -- init", "a") == "x a -- init");
  CHECK(add_words("-- init", "a") == "a -- init");
  CHECK(add_words("x --", "a") == "x a --");
  CHECK(add_words("--", "a") == "a --");
}

TEST_CASE("default command line: has the console, and no word that removes a protection") {
  CHECK(has_word(kDefaultLinuxCmdline, "console=ttyS0"));
  CHECK(has_word(kDefaultLinuxCmdline, "panic=-1"));
  for (const char* word : {"nokaslr", "nopti", "nosmap", "nosmep", "nospectre_v2", "quiet"}) {
    CHECK_FALSE(has_word(kDefaultLinuxCmdline, word));
  }
  CHECK_FALSE(has_word(kDefaultLinuxCmdline, "mitigations="));
}

KernelImage image(std::uint64_t start, std::uint64_t size) {
  KernelImage kernel;
  kernel.start = start;
  kernel.end = start + size;
  kernel.alignment = 2 * kMiB;
  kernel.initramfs_max = 0x7fffffff;
  return kernel;
}

TEST_CASE("placement: as linked, unless it is to be random") {
  const auto placed = place_kernel(image(16 * kMiB, 40 * kMiB), {.ram_end = 128 * kMiB},
                                   [](std::uint64_t) -> std::uint64_t { std::abort(); });
  REQUIRE(placed);
  CHECK(placed->physical_delta == 0);
  CHECK(placed->virtual_delta == 0);
}

TEST_CASE("placement: the first and the last random slot lie within bounds") {
  const PlacementRequest request{.ram_end = 128 * kMiB,
                                 .initramfs_size = 3 * kMiB - 100,
                                 .random_physical = true,
                                 .random_virtual = true};
  const KernelImage kernel = image(16 * kMiB, 41 * kMiB);
  const auto lowest = place_kernel(kernel, request, [](std::uint64_t) { return 0; });
  REQUIRE(lowest);
  CHECK(lowest->initramfs == GuestAddress(125 * kMiB));
  CHECK(lowest->physical_delta == 0);
  CHECK(lowest->virtual_delta == 0);
  const auto highest = place_kernel(kernel, request, [](std::uint64_t bound) { return bound - 1; });
  REQUIRE(highest);
  // 42 MiB are claimed; 82 + 42 = 124, and one slot more would touch the initramfs at 125.
  CHECK(highest->physical_delta == (82 - 16) * kMiB);
  CHECK(highest->virtual_delta == (1024 - 42 - 16) * kMiB);
}

TEST_CASE("placement: the initramfs lies as high as the kernel allows") {
  KernelImage kernel = image(16 * kMiB, 40 * kMiB);
  const auto place = [&](std::uint64_t ram, std::uint64_t size) {
    return place_kernel(kernel, {.ram_end = ram, .initramfs_size = size}, system_random_below);
  };
  CHECK(place(3072 * kMiB, 1)->initramfs == GuestAddress(0x80000000 - 4096));
  kernel.initramfs_max = 0xffffffff;
  CHECK(place(3072 * kMiB, 4097)->initramfs == GuestAddress(0xc0000000 - 8192));
  CHECK(place(64 * kMiB, 8 * kMiB)->initramfs == GuestAddress(56 * kMiB));
  const auto too_large = place(64 * kMiB, 8 * kMiB + 1);
  REQUIRE_FALSE(too_large);
  CHECK(too_large.error().message().find("initramfs of 9 MiB does not fit") != std::string::npos);
  CHECK_FALSE(place(64 * kMiB, std::uint64_t{1} << 40));
  const auto too_small = place(48 * kMiB, 0);
  REQUIRE_FALSE(too_small);
  CHECK(too_small.error().code() == ErrorCode::kBadInput);
  CHECK(too_small.error().message().find("up to 56 MiB, and there are 48 MiB") !=
        std::string::npos);
}

TEST_CASE("placement: where memory is tight the kernel stays, and its virtual base still moves") {
  const auto placed =
      place_kernel(image(16 * kMiB, 41 * kMiB),
                   {.ram_end = 57 * kMiB, .random_physical = true, .random_virtual = true},
                   [](std::uint64_t bound) { return bound - 1; });
  REQUIRE(placed);
  CHECK(placed->physical_delta == 0);
  CHECK(placed->virtual_delta > 0);
}

TEST_CASE("placement: random numbers stay below their bound and differ") {
  std::uint64_t seen = 0;
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t value = system_random_below(40);
    REQUIRE(value < 40);
    seen |= std::uint64_t{1} << value;
  }
  CHECK(std::popcount(seen) > 20);
}

}  // namespace
}  // namespace vireo
