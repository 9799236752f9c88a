// SPDX-License-Identifier: Apache-2.0
#include "boot/kernel_image.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>

#include <elf.h>

#include <fmt/core.h>

#include "src/base/endian.h"

namespace vireo {

namespace {

/// Where magic numbers of Linux images for other machines stand (arm64's and riscv's boot image
/// headers, ARM's zImage).
constexpr std::uint64_t kImageMagicOffset = 0x38;
constexpr std::uint64_t kZImageMagicOffset = 0x24;
constexpr std::uint32_t kArm64Magic = 0x644d5241;  // "ARM\x64"
constexpr std::uint32_t kRiscvMagic = 0x05435352;  // "RSC\x05"
constexpr std::uint32_t kZImageMagic = 0x016f2818;

/// Fields of setup_header, by their offset in the file (Documentation/x86/boot.rst).
constexpr std::uint64_t kHeaderMagicOffset = 0x202;
constexpr std::uint32_t kHeaderMagic = 0x53726448;  // "HdrS"

std::string machine_name(std::uint16_t machine) {
  switch (machine) {
    case EM_386:
      return "32-bit x86 (i386)";
    case EM_AARCH64:
      return "aarch64";
    case EM_ARM:
      return "32-bit arm";
    case EM_RISCV:
      return "riscv";
    case EM_PPC:
    case EM_PPC64:
      return "powerpc";
    case EM_S390:
      return "s390";
    case EM_MIPS:
      return "mips";
    case EM_SPARC:
    case EM_SPARCV9:
      return "sparc";
    case EM_LOONGARCH:
      return "loongarch";
    default:
      return fmt::format("machine {}", machine);
  }
}

Result<> refuse(std::string reason) {
  return fail(ErrorCode::kBadInput, std::move(reason));
}

Result<> check_elf_target(const ByteSource& source) {
  TRY_ASSIGN(const auto ident, (source.read_object<std::array<unsigned char, EI_NIDENT>>(0)));
  const bool big_endian = ident[EI_DATA] == ELFDATA2MSB;
  if (!big_endian && ident[EI_DATA] != ELFDATA2LSB) {
    return refuse("a damaged ELF file: unknown byte order");
  }
  TRY_ASSIGN(const le16 raw, source.read_object<le16>(offsetof(Elf64_Ehdr, e_machine)));
  const std::uint16_t machine = big_endian ? std::byteswap(std::uint16_t{raw}) : std::uint16_t{raw};
  if (machine != EM_X86_64 || big_endian) {
    return refuse(
        fmt::format("an ELF file for {}; this machine runs x86-64", machine_name(machine)));
  }
  if (ident[EI_CLASS] != ELFCLASS64) {
    return refuse("a 32-bit ELF file; a 64-bit x86-64 kernel is needed");
  }
  return {};
}

/// Names what is known to be no kernel for us.
std::string describe_stranger(const ByteSource& source) {
  const auto at = [&](std::uint64_t offset) -> std::uint32_t {
    const auto word = source.read_object<le32>(offset);
    return word ? std::uint32_t{*word} : 0U;
  };
  if (at(kImageMagicOffset) == kArm64Magic) {
    return "a Linux image for aarch64; this machine runs x86-64";
  }
  if (at(kImageMagicOffset) == kRiscvMagic) {
    return "a Linux image for riscv; this machine runs x86-64";
  }
  if (at(kZImageMagicOffset) == kZImageMagic) {
    return "a Linux image for 32-bit arm; this machine runs x86-64";
  }
  if ((at(0) & 0xffffU) == 0x8b1fU || at(0) == 0xfd2fb528U || at(0) == 0x587a37fdU) {
    return "a compressed file; give the kernel itself";
  }
  return "not a kernel: neither an ELF file nor a bzImage";
}

// --- ELF ---------------------------------------------------------------------------------------

constexpr std::uint16_t kProgramHeadersMax = 128;
constexpr std::uint64_t kNotesMax = std::uint64_t{1} << 20;
/// A hundred times what kernels have; more is something else.
constexpr std::uint64_t kRelocationsMax = std::uint64_t{64} << 20;
/// XEN_ELFNOTE_PHYS32_ENTRY: the entry point of the PVH boot ABI.
constexpr std::uint32_t kXenPhys32Entry = 18;
/// __START_KERNEL_map and the alignment that __startup_64 insists on.
constexpr std::uint64_t kLinuxPageAlign = std::uint64_t{2} << 20;
/// COMMAND_LINE_SIZE of x86 with its NUL; a vmlinux does not state it anywhere.
constexpr std::uint64_t kLinuxCommandLineSize = 2048;
/// Below this lies what we put into low memory ourselves.
constexpr std::uint64_t kLowestLoadAddress = 0x100000;

struct Notes {
  bool linux_owner = false;
  std::optional<std::uint64_t> pvh_entry;
};

std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

/// One note: `name` without its NUL, `descriptor` as it stands.
void take_note(std::string_view name, std::uint32_t type, std::span<const std::byte> descriptor,
               Notes& notes) {
  if (name == "Linux") {
    notes.linux_owner = true;
  } else if (name == "Xen" && type == kXenPhys32Entry &&
             (descriptor.size() == 4 || descriptor.size() == 8)) {
    le64 entry;
    std::memcpy(&entry, descriptor.data(), descriptor.size());
    notes.pvh_entry = entry;
  }
}

/// Walks a PT_NOTE segment; it ends where it no longer makes sense, as every reader of notes does.
Result<> read_notes(const ByteSource& source, const Elf64_Phdr& header, Notes& notes) {
  if (header.p_filesz > kNotesMax || !source.contains(header.p_offset, header.p_filesz)) {
    return refuse("the ELF file ends before its notes do (truncated?)");
  }
  std::vector<std::byte> bytes(header.p_filesz);
  TRY(source.read(header.p_offset, bytes));
  const std::uint64_t alignment = header.p_align == 8 ? 8 : 4;
  std::span<const std::byte> rest = bytes;
  while (rest.size() >= sizeof(Elf64_Nhdr)) {
    Elf64_Nhdr note = {};
    std::memcpy(&note, rest.data(), sizeof(note));
    const std::uint64_t descriptor_at = align_up(sizeof(note) + note.n_namesz, alignment);
    const std::uint64_t next = align_up(descriptor_at + note.n_descsz, alignment);
    if (descriptor_at + note.n_descsz > rest.size()) {
      return {};
    }
    std::string name(note.n_namesz, '\0');
    std::memcpy(name.data(), rest.data() + sizeof(note), name.size());
    name.resize(std::strlen(name.c_str()));
    take_note(name, note.n_type, rest.subspan(descriptor_at, note.n_descsz), notes);
    rest = rest.subspan(std::min<std::uint64_t>(next, rest.size()));
  }
  return {};
}

Result<> check_segment(const ByteSource& source, const Elf64_Phdr& segment) {
  if (segment.p_filesz > segment.p_memsz) {
    return refuse("a damaged ELF file: a segment is larger in the file than in memory");
  }
  if (!source.contains(segment.p_offset, segment.p_filesz)) {
    return refuse("the ELF file ends before its segments do (truncated?)");
  }
  std::uint64_t end = 0;
  if (segment.p_memsz > kKernelSizeMax ||
      __builtin_add_overflow(segment.p_paddr, segment.p_memsz, &end)) {
    return refuse(fmt::format("a segment of {} bytes at {:#x}; a kernel takes at most 1 GiB",
                              segment.p_memsz, segment.p_paddr));
  }
  if (segment.p_paddr < kLowestLoadAddress) {
    return refuse(fmt::format("a segment wants to lie at {:#x}, below 1 MiB", segment.p_paddr));
  }
  return {};
}

Result<std::vector<Elf64_Phdr>> read_program_headers(const ByteSource& source,
                                                     const Elf64_Ehdr& header) {
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 ||
      header.e_phnum > kProgramHeadersMax) {
    return fail(ErrorCode::kBadInput,
                fmt::format("an ELF file with {} program headers of {} bytes: nothing to load",
                            header.e_phnum, header.e_phentsize));
  }
  std::vector<Elf64_Phdr> headers(header.e_phnum);
  TRY(source.read(header.e_phoff, std::as_writable_bytes(std::span(headers))));
  return headers;
}

/// Segments in the order of their addresses, checked one by one and against each other.
Result<std::vector<Elf64_Phdr>> loadable_segments(const ByteSource& source,
                                                  std::vector<Elf64_Phdr> headers) {
  std::erase_if(headers, [](const Elf64_Phdr& header) {
    return header.p_type != PT_LOAD || header.p_memsz == 0;
  });
  if (headers.empty()) {
    return fail(ErrorCode::kBadInput, "an ELF file without a segment to load");
  }
  for (const Elf64_Phdr& segment : headers) {
    TRY(check_segment(source, segment));
  }
  std::ranges::sort(headers, {}, &Elf64_Phdr::p_paddr);
  for (std::size_t i = 1; i < headers.size(); ++i) {
    if (headers[i - 1].p_paddr + headers[i - 1].p_memsz > headers[i].p_paddr) {
      return fail(ErrorCode::kBadInput,
                  fmt::format("a damaged ELF file: segments overlap at {:#x}", headers[i].p_paddr));
    }
  }
  const std::uint64_t span =
      headers.back().p_paddr + headers.back().p_memsz - headers.front().p_paddr;
  if (span > kKernelSizeMax) {
    return fail(ErrorCode::kBadInput,
                fmt::format("its segments span {} MiB; a kernel takes at most 1 GiB", span >> 20));
  }
  return headers;
}

/// Behind the section headers of an unpacked vmlinux stands the relocation table, up to the end.
void find_relocations(const ByteSource& source, const Elf64_Ehdr& header, KernelImage& kernel) {
  const std::uint64_t sections = std::uint64_t{header.e_shnum} * header.e_shentsize;
  if (header.e_shoff == 0 || !source.contains(header.e_shoff, sections)) {
    return;
  }
  const std::uint64_t offset = header.e_shoff + sections;
  const std::uint64_t size = source.size() - offset;
  if (size <= kRelocationsMax && size % sizeof(std::uint32_t) == 0) {
    kernel.relocations_offset = offset;
    kernel.relocations_size = size;
  }
}

Result<> choose_protocol(const Notes& notes, const Elf64_Ehdr& header, bool must_be_linux,
                         KernelImage& kernel) {
  if (notes.linux_owner || must_be_linux) {
    kernel.protocol = BootProtocol::kLinux64;
    kernel.entry = header.e_entry;
    kernel.cmdline_max = kLinuxCommandLineSize - 1;
    if (kernel.start % kLinuxPageAlign != 0) {
      return refuse(fmt::format("a Linux kernel linked at {:#x}, which is not a multiple of 2 MiB",
                                kernel.start));
    }
    return {};
  }
  if (notes.pvh_entry) {
    kernel.protocol = BootProtocol::kPvh;
    kernel.entry = *notes.pvh_entry;
    return {};
  }
  return refuse("an ELF file with neither a Linux nor a PVH note: no way to enter it");
}

}  // namespace

Result<KernelKind> identify_kernel(const ByteSource& source) {
  if (source.size() == 0) {
    return fail(ErrorCode::kBadInput, "the file is empty");
  }
  if (const auto magic = source.read_object<std::array<char, SELFMAG>>(0);
      magic && std::memcmp(magic->data(), ELFMAG, SELFMAG) == 0) {
    TRY(check_elf_target(source));
    return KernelKind::kElf;
  }
  if (const auto magic = source.read_object<le32>(kHeaderMagicOffset);
      magic && *magic == kHeaderMagic) {
    return KernelKind::kBzImage;
  }
  return fail(ErrorCode::kBadInput, describe_stranger(source));
}

Result<KernelImage> read_elf_kernel(const ByteSource& source, bool must_be_linux) {
  TRY(check_elf_target(source));
  TRY_ASSIGN(const auto header, source.read_object<Elf64_Ehdr>(0));
  if (header.e_type != ET_EXEC && header.e_type != ET_DYN) {
    return fail(ErrorCode::kBadInput, "an ELF file that is not executable (an object file?)");
  }
  TRY_ASSIGN(const auto headers, read_program_headers(source, header));
  Notes notes;
  for (const Elf64_Phdr& segment : headers) {
    if (segment.p_type == PT_NOTE) {
      TRY(read_notes(source, segment, notes));
    }
  }
  if (!notes.linux_owner && !notes.pvh_entry && !must_be_linux) {
    KernelImage none;
    TRY(choose_protocol(notes, header, must_be_linux, none));
  }
  TRY_ASSIGN(const auto segments, loadable_segments(source, headers));
  KernelImage kernel;
  kernel.start = segments.front().p_paddr;
  kernel.end = segments.back().p_paddr + segments.back().p_memsz;
  kernel.alignment = kLinuxPageAlign;
  kernel.initramfs_max = 0xffffffff;
  kernel.virtual_start = segments.front().p_vaddr;
  TRY(choose_protocol(notes, header, must_be_linux, kernel));
  const bool inside = std::ranges::any_of(segments, [&](const Elf64_Phdr& segment) {
    return kernel.entry >= segment.p_paddr && kernel.entry - segment.p_paddr < segment.p_memsz;
  });
  if (!inside) {
    return fail(ErrorCode::kBadInput,
                fmt::format("its entry point {:#x} lies in no segment", kernel.entry));
  }
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_filesz > 0) {
      kernel.extents.push_back(
          {.address = segment.p_paddr, .size = segment.p_filesz, .offset = segment.p_offset});
    }
  }
  if (kernel.protocol == BootProtocol::kLinux64) {
    find_relocations(source, header, kernel);
  }
  return kernel;
}

}  // namespace vireo
