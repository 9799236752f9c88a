// SPDX-License-Identifier: Apache-2.0
#include "boot/boot_params.h"

#include <algorithm>
#include <cstring>

#include <asm/bootparam.h>

#include "arch/x86_64/layout.h"
#include "src/base/endian.h"

namespace vireo {

namespace {

/// SETUP_RNG_SEED is younger than the oldest headers that we build with.
constexpr std::uint32_t kSetupRngSeed = 9;
constexpr std::uint16_t kBootFlag = 0xaa55;
constexpr std::uint32_t kHeaderMagic = 0x53726448;  // "HdrS"
constexpr std::uint16_t kProtocolVersion = 0x20f;
/// "No assigned id": what a loader outside of the kernel's list calls itself.
constexpr std::uint8_t kLoaderUnknown = 0xff;
constexpr std::uint32_t kKernelAlignment = 0x200000;
constexpr std::uint32_t kCommandLineMaxLinux = 2047;

struct SetupDataSeed {
  le64 next;
  le32 type;
  le32 length;
  std::array<std::byte, kRngSeedSize> data;
};
static_assert(sizeof(SetupDataSeed) == sizeof(setup_data) + kRngSeedSize);

// PVH, version 1 of the start info.
constexpr std::uint32_t kPvhMagic = 0x336ec578;
constexpr std::uint32_t kPvhVersion = 1;

struct PvhStartInfo {
  le32 magic;
  le32 version;
  le32 flags;
  le32 module_count;
  le64 module_list;
  le64 cmdline;
  le64 rsdp;
  le64 memory_map;
  le32 memory_map_count;
  le32 reserved;
};
static_assert(sizeof(PvhStartInfo) == 56);

struct PvhModule {
  le64 address;
  le64 size;
  le64 cmdline;
  le64 reserved;
};
static_assert(sizeof(PvhModule) == 32);

struct PvhMemoryEntry {
  le64 address;
  le64 size;
  le32 type;
  le32 reserved;
};
static_assert(sizeof(PvhMemoryEntry) == 24);

struct PvhArea {
  PvhStartInfo start_info;
  PvhModule initramfs;
  std::array<PvhMemoryEntry, 32> memory_map;
};
static_assert(sizeof(PvhArea) <= layout::kPvhStartInfoSize);

void write_cmdline(GuestMemory& memory, const std::string& cmdline) {
  CHECK(cmdline.size() < layout::kCommandLineMax);
  CHECK(memory.write(layout::kCommandLine,
                     std::as_bytes(std::span(cmdline.c_str(), cmdline.size() + 1))));
}

GuestRange range(GuestAddress start, GuestAddress end) {
  const auto result = GuestRange::create(start, end.value() - start.value());
  CHECK(result.has_value() && start <= end);
  return *result;
}

setup_header make_header(const BootParams& params) {
  setup_header header = {};
  if (params.setup_header.empty()) {
    header.boot_flag = kBootFlag;
    header.header = kHeaderMagic;
    header.version = kProtocolVersion;
    header.loadflags = LOADED_HIGH;
    header.kernel_alignment = kKernelAlignment;
    header.relocatable_kernel = 1;
    header.cmdline_size = kCommandLineMaxLinux;
  } else {
    std::memcpy(&header, params.setup_header.data(),
                std::min(params.setup_header.size(), sizeof(header)));
  }
  header.type_of_loader = kLoaderUnknown;
  const unsigned flags = header.loadflags & ~unsigned{KASLR_FLAG};
  header.loadflags = static_cast<std::uint8_t>(flags | (params.kaslr ? unsigned{KASLR_FLAG} : 0U));
  header.cmd_line_ptr = static_cast<std::uint32_t>(layout::kCommandLine.value());
  header.ramdisk_image = static_cast<std::uint32_t>(params.initramfs.start().value());
  header.ramdisk_size = static_cast<std::uint32_t>(params.initramfs.size());
  header.setup_data = layout::kSetupData.value();
  return header;
}

/// Splits a command line into what the kernel reads and the rest, from " -- " on.
std::size_t kernel_part(std::string_view cmdline) {
  if (cmdline.starts_with("-- ") || cmdline == "--") {
    return 0;
  }
  const std::size_t separator = cmdline.find(" -- ");
  if (separator != std::string_view::npos) {
    return separator;
  }
  return cmdline.ends_with(" --") ? cmdline.size() - 3 : cmdline.size();
}

}  // namespace

std::vector<E820Entry> memory_map(const GuestMemory& memory) {
  std::vector<E820Entry> map;
  for (const GuestMemory::Region& region : memory.regions()) {
    if (region.range.start() > GuestAddress(0)) {
      map.push_back({region.range, E820Type::kRam});
      continue;
    }
    // Low memory: 640 KiB less the last KiB, where a BIOS would keep its data; then ACPI, SMBIOS.
    map.push_back({range(GuestAddress(0), layout::kLowMemoryEnd), E820Type::kRam});
    map.push_back({range(layout::kLowMemoryEnd, GuestAddress(0xa0000)), E820Type::kReserved});
    map.push_back({range(layout::kRsdp, layout::kHighMemoryStart), E820Type::kReserved});
    map.push_back({range(layout::kHighMemoryStart, region.range.end()), E820Type::kRam});
  }
  return map;
}

GuestAddress write_zero_page(GuestMemory& memory, const BootParams& params) {
  write_cmdline(memory, params.cmdline);
  SetupDataSeed seed;
  seed.type = kSetupRngSeed;
  seed.length = kRngSeedSize;
  seed.data = params.rng_seed;
  CHECK(memory.write_object(layout::kSetupData, seed));

  boot_params zero_page = {};
  zero_page.acpi_rsdp_addr = params.rsdp.value();
  zero_page.hdr = make_header(params);
  const std::vector<E820Entry> map = memory_map(memory);
  CHECK(map.size() <= E820_MAX_ENTRIES_ZEROPAGE);
  for (std::size_t i = 0; i < map.size(); ++i) {
    zero_page.e820_table[i] = {.addr = map[i].range.start().value(),
                               .size = map[i].range.size(),
                               .type = static_cast<std::uint32_t>(map[i].type)};
  }
  zero_page.e820_entries = static_cast<std::uint8_t>(map.size());
  CHECK(memory.write_object(layout::kZeroPage, zero_page));
  return layout::kZeroPage;
}

GuestAddress write_pvh_start_info(GuestMemory& memory, const BootParams& params) {
  write_cmdline(memory, params.cmdline);
  const std::uint64_t base = layout::kPvhStartInfo.value();
  PvhArea area = {};
  area.start_info.magic = kPvhMagic;
  area.start_info.version = kPvhVersion;
  area.start_info.cmdline = layout::kCommandLine.value();
  area.start_info.rsdp = params.rsdp.value();
  if (params.initramfs.size() > 0) {
    area.start_info.module_count = 1;
    area.start_info.module_list = base + offsetof(PvhArea, initramfs);
    area.initramfs.address = params.initramfs.start().value();
    area.initramfs.size = params.initramfs.size();
  }
  const std::vector<E820Entry> map = memory_map(memory);
  CHECK(map.size() <= area.memory_map.size());
  for (std::size_t i = 0; i < map.size(); ++i) {
    area.memory_map[i].address = map[i].range.start().value();
    area.memory_map[i].size = map[i].range.size();
    area.memory_map[i].type = static_cast<std::uint32_t>(map[i].type);
  }
  area.start_info.memory_map = base + offsetof(PvhArea, memory_map);
  area.start_info.memory_map_count = static_cast<std::uint32_t>(map.size());
  CHECK(memory.write_object(layout::kPvhStartInfo, area));
  return layout::kPvhStartInfo;
}

bool has_word(std::string_view cmdline, std::string_view word) {
  while (!cmdline.empty()) {
    const std::size_t space = std::min(cmdline.find(' '), cmdline.size());
    const std::string_view candidate = cmdline.substr(0, space);
    if (word.ends_with('=') ? candidate.starts_with(word) : candidate == word) {
      return true;
    }
    cmdline.remove_prefix(std::min(space + 1, cmdline.size()));
  }
  return false;
}

std::string add_words(const std::string& cmdline, std::string_view words) {
  if (words.empty()) {
    return cmdline;
  }
  const std::size_t end = kernel_part(cmdline);
  std::string result = cmdline.substr(0, end);
  if (!result.empty() && !result.ends_with(' ')) {
    result += ' ';
  }
  result += words;
  if (end < cmdline.size()) {
    result += end == 0 ? " " : "";
    result += cmdline.substr(end);
  }
  return result;
}

}  // namespace vireo
