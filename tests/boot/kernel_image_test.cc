// SPDX-License-Identifier: Apache-2.0
#include "boot/kernel_image.h"

#include <cstring>

#include "boot/payload.h"
#include "boot/relocate.h"
#include "tests/boot/kernel_builder.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

using namespace testing;

/// The message with which a file is refused, by whichever step sees it first.
std::string refusal(const Bytes& file) {
  const ByteSource source(file);
  const auto kind = identify_kernel(source);
  if (!kind) {
    CHECK(kind.error().code() == ErrorCode::kBadInput);
    return kind.error().message();
  }
  if (*kind == KernelKind::kElf) {
    const auto kernel = read_elf_kernel(source, false);
    return kernel ? "accepted" : kernel.error().message();
  }
  const auto image = read_bzimage(source);
  return image ? "accepted" : image.error().message();
}

Bytes cut(Bytes file, std::size_t size) {
  REQUIRE(size <= file.size());
  file.resize(size);
  return file;
}

using Spoil = std::function<void(Elf64_Ehdr&, std::vector<Elf64_Phdr>&)>;

Bytes spoilt(ElfKernel kernel, Spoil spoil) {
  kernel.spoil = std::move(spoil);
  return build_elf(kernel);
}

TEST_CASE("kernel image: an ELF with a Linux note is entered by the 64-bit Linux protocol") {
  const Bytes file = build_elf(linux_kernel());
  const ByteSource source(file);
  REQUIRE(identify_kernel(source) == KernelKind::kElf);
  const auto kernel = read_elf_kernel(source, false);
  REQUIRE(kernel);
  CHECK(kernel->protocol == BootProtocol::kLinux64);
  CHECK(kernel->entry == kLinkAddress);
  CHECK(kernel->start == kLinkAddress);
  CHECK(kernel->end == kLinkAddress + 0x300000);
  CHECK(kernel->virtual_start == kVirtualBase + kLinkAddress);
  CHECK(kernel->cmdline_max == 2047);
  REQUIRE(kernel->extents.size() == 2);
  CHECK(kernel->extents[1].address == kLinkAddress + 0x200000);
  CHECK(kernel->extents[1].size == 0x1234);
  CHECK(kernel->relocations_size == 32);
  CHECK(kernel->relocations_offset + kernel->relocations_size == file.size());
}

TEST_CASE("kernel image: any other with a PVH note is entered by PVH") {
  const Bytes file = build_elf(pvh_kernel(kLinkAddress + 0x40));
  const auto kernel = read_elf_kernel(ByteSource(file), false);
  REQUIRE(kernel);
  CHECK(kernel->protocol == BootProtocol::kPvh);
  CHECK(kernel->entry == kLinkAddress + 0x40);
  CHECK(kernel->relocations_size == 0);

  ElfKernel wide = pvh_kernel();
  wide.notes[1].descriptor.resize(8);
  CHECK(read_elf_kernel(ByteSource(build_elf(wide)), false)->entry == kLinkAddress);
  wide.notes[1].descriptor.resize(6);
  CHECK(refusal(build_elf(wide)).find("neither a Linux nor a PVH note") != std::string::npos);
}

TEST_CASE("kernel image: what came out of a bzImage needs no note") {
  ElfKernel plain = linux_kernel();
  plain.notes.clear();
  const Bytes file = build_elf(plain);
  CHECK(read_elf_kernel(ByteSource(file), true)->protocol == BootProtocol::kLinux64);
  CHECK_FALSE(read_elf_kernel(ByteSource(file), false));
}

TEST_CASE("kernel image: position-independent kernels are loaded too, object files are not") {
  const auto typed = [](std::uint16_t type) {
    return spoilt(linux_kernel(), [type](auto& header, auto&) { header.e_type = type; });
  };
  CHECK(refusal(typed(ET_DYN)) == "accepted");
  CHECK(refusal(typed(ET_REL)).find("object file") != std::string::npos);
}

TEST_CASE("kernel image: strangers are called by their name") {
  const auto of_machine = [](std::uint16_t machine, unsigned char data = ELFDATA2LSB) {
    return spoilt(linux_kernel(), [machine, data](Elf64_Ehdr& header, auto&) {
      header.e_ident[EI_DATA] = data;
      header.e_machine = data == ELFDATA2MSB ? std::byteswap(machine) : machine;
    });
  };
  CHECK(refusal(of_machine(EM_AARCH64)).find("aarch64") != std::string::npos);
  CHECK(refusal(of_machine(EM_RISCV)).find("riscv") != std::string::npos);
  CHECK(refusal(of_machine(EM_ARM)).find("arm") != std::string::npos);
  CHECK(refusal(of_machine(EM_386)).find("i386") != std::string::npos);
  CHECK(refusal(of_machine(EM_PPC64)).find("powerpc") != std::string::npos);
  CHECK(refusal(of_machine(EM_S390, ELFDATA2MSB)).find("s390") != std::string::npos);
  CHECK(refusal(of_machine(EM_MIPS, ELFDATA2MSB)).find("mips") != std::string::npos);
  CHECK(refusal(of_machine(EM_SPARCV9, ELFDATA2MSB)).find("sparc") != std::string::npos);
  CHECK(refusal(of_machine(EM_LOONGARCH)).find("loongarch") != std::string::npos);
  CHECK(refusal(of_machine(12345)).find("machine 12345") != std::string::npos);
  CHECK(refusal(of_machine(EM_X86_64, 7)).find("byte order") != std::string::npos);
  CHECK(refusal(spoilt(linux_kernel(), [](Elf64_Ehdr& header, auto&) {
          header.e_ident[EI_CLASS] = ELFCLASS32;
        })).find("32-bit ELF") != std::string::npos);

  const auto with_magic = [](std::size_t at, std::uint32_t magic) {
    Bytes file(0x400);
    std::memcpy(file.data() + at, &magic, sizeof(magic));
    return file;
  };
  CHECK(refusal(with_magic(0x38, 0x644d5241)).find("aarch64") != std::string::npos);
  CHECK(refusal(with_magic(0x38, 0x05435352)).find("riscv") != std::string::npos);
  CHECK(refusal(with_magic(0x24, 0x016f2818)).find("32-bit arm") != std::string::npos);
  CHECK(refusal(with_magic(0, 0x00088b1f)).find("compressed file") != std::string::npos);
  CHECK(refusal(pattern(5000)).find("not a kernel") != std::string::npos);
  CHECK(refusal(pattern(3)).find("not a kernel") != std::string::npos);
  CHECK(refusal({}) == "the file is empty");
}

TEST_CASE("kernel image: an ELF cut short is refused wherever it was cut") {
  const Bytes whole = build_elf(linux_kernel());
  for (const std::size_t size : {4UL, 17UL, 60UL, 63UL, 64UL, 100UL, 0x100UL, 0x4000UL}) {
    CAPTURE(size);
    CHECK(refusal(cut(whole, size)) != "accepted");
  }
  CHECK(refusal(cut(whole, 0x4000)).find("truncated") != std::string::npos);
}

TEST_CASE("kernel image: segments that cannot be are refused") {
  const auto segment = [](auto change) {
    return refusal(spoilt(
        linux_kernel(), [change](auto&, std::vector<Elf64_Phdr>& headers) { change(headers[0]); }));
  };
  CHECK(segment([](Elf64_Phdr& h) { h.p_memsz = h.p_filesz - 1; }).find("larger in the file") !=
        std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_memsz = 0x300000; }).find("overlap") != std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_filesz = h.p_memsz = 1ULL << 62; }).find("truncated") !=
        std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_offset = ~0ULL; }).find("truncated") != std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_memsz = 1ULL << 62; }).find("at most 1 GiB") !=
        std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_paddr = ~0ULL - 0x100; }).find("at most 1 GiB") !=
        std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_paddr = 0x1000; }).find("below 1 MiB") !=
        std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_paddr = 0xf00000000; }).find("span") != std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_paddr = 0x100000; }).find("multiple of 2 MiB") !=
        std::string::npos);
  CHECK(segment([](Elf64_Phdr& h) { h.p_type = PT_NULL; }).find("lies in no segment") !=
        std::string::npos);
}

TEST_CASE("kernel image: headers that cannot be are refused") {
  const auto header = [](auto change) {
    return refusal(
        spoilt(linux_kernel(),
               [change](Elf64_Ehdr& h, std::vector<Elf64_Phdr>& headers) { change(h, headers); }));
  };
  CHECK(header([](auto& h, auto&) { h.e_entry = 0x10; }).find("entry point 0x10") !=
        std::string::npos);
  CHECK(header([](auto& h, auto&) { h.e_phnum = 0; }).find("nothing to load") != std::string::npos);
  CHECK(header([](auto& h, auto&) { h.e_phnum = 0xffff; }).find("nothing to load") !=
        std::string::npos);
  CHECK(header([](auto& h, auto&) { h.e_phentsize = 32; }).find("nothing to load") !=
        std::string::npos);
  CHECK(header([](auto& h, auto&) { h.e_phoff = ~0ULL; }).find("truncated") != std::string::npos);
  CHECK(header([](auto&, auto& p) {
          for (Elf64_Phdr& each : p) {
            each.p_type = each.p_type == PT_LOAD ? PT_DYNAMIC : each.p_type;
          }
        }).find("without a segment") != std::string::npos);
  CHECK(header([](auto&, auto& p) { p.back().p_filesz = 1U << 30; }).find("notes") !=
        std::string::npos);
  CHECK(header([](auto&, auto& p) { p.back().p_offset = ~0ULL; }).find("notes") !=
        std::string::npos);
  // A table that would begin outside of the file is none.
  const Bytes far = spoilt(linux_kernel(), [](auto& h, auto&) { h.e_shoff = ~0ULL; });
  CHECK(read_elf_kernel(ByteSource(far), false)->relocations_size == 0);
}

TEST_CASE("kernel image: notes end where they no longer make sense") {
  ElfKernel kernel = linux_kernel();
  kernel.notes.insert(kernel.notes.begin() + 1,
                      {.owner = "Odd", .type = 1, .descriptor = Bytes(5)});
  CHECK(refusal(build_elf(kernel)) == "accepted");
  // The first note claims to reach behind the end, so the Linux note is never found.
  Bytes file = build_elf(linux_kernel());
  const ByteSource source(file);
  const auto header = *source.read_object<Elf64_Phdr>(64 + 2 * sizeof(Elf64_Phdr));
  REQUIRE(header.p_type == PT_NOTE);
  const std::uint32_t huge = 0xfffffff0;
  std::memcpy(file.data() + header.p_offset + 4, &huge, sizeof(huge));
  CHECK(refusal(file).find("neither") != std::string::npos);
  std::memcpy(file.data() + header.p_offset, &huge, sizeof(huge));
  CHECK(refusal(file).find("neither") != std::string::npos);
}

TEST_CASE("bzImage: its header says where everything is") {
  const Bytes payload = compress(build_elf(linux_kernel()), Compression::kLz4);
  const Bytes file = build_bzimage(payload);
  REQUIRE(identify_kernel(ByteSource(file)) == KernelKind::kBzImage);
  const auto image = read_bzimage(ByteSource(file));
  REQUIRE(image);
  CHECK(image->payload_size == payload.size());
  CHECK(std::memcmp(file.data() + image->payload_offset, payload.data(), payload.size()) == 0);
  CHECK(image->cmdline_max == 2047);
  const KernelImage kernel = packed_kernel(*image);
  CHECK(kernel.packed);
  CHECK(kernel.entry == kLinkAddress + 0x200);
  CHECK(kernel.end == kLinkAddress + 0x800000);
  CHECK(kernel.extents.at(0).offset == 1024);
  CHECK(kernel.initramfs_max == 0x7fffffff);
}

TEST_CASE("bzImage: broken ones are refused") {
  const Bytes payload = bytes_of("payload");
  const auto header = [&](auto change) { return refusal(build_bzimage(payload, change)); };
  CHECK(header([](setup_header& h) { h.version = 0x20b; }).find("protocol 2.11") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.xloadflags = 0; }).find("64-bit entry") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.loadflags = 0; }).find("zImage") != std::string::npos);
  CHECK(header([](setup_header& h) { h.syssize = 0x1000000; }).find("truncated") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.syssize = 0; }).find("truncated") != std::string::npos);
  CHECK(header([](setup_header& h) { h.setup_sects = 200; }).find("truncated") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.payload_offset = ~0U; }).find("payload") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.payload_length = ~0U; }).find("payload") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.kernel_alignment = 0; }).find("alignment") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.kernel_alignment = 0x300000; }).find("alignment") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.pref_address = 0; }).find("preferred") != std::string::npos);
  CHECK(header([](setup_header& h) { h.pref_address = ~0ULL; }).find("preferred") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.init_size = ~0U; }).find("at most 1 GiB") !=
        std::string::npos);
  CHECK(header([](setup_header& h) { h.jump = 0x01eb; }).find("protocol 0.0") != std::string::npos);
  const Bytes whole = build_bzimage(payload);
  for (const std::size_t size : {0x200UL, 0x206UL, 0x240UL, 0x400UL, 0x7ffUL}) {
    CAPTURE(size);
    CHECK(refusal(cut(whole, size)) != "accepted");
  }
  CHECK(refusal(whole) == "accepted");
}

constexpr std::uint32_t kBase = 0x81000000;
constexpr std::uint64_t kStart = 0xffffffff81000000;

TEST_CASE("relocations: each of the three kinds moves what it points at, and nothing else") {
  Bytes image(0x1000);
  const auto put = [&](std::size_t at, auto value) {
    std::memcpy(image.data() + at, &value, sizeof(value));
  };
  put(0x10, std::uint32_t{0x81000100});
  put(0x20, std::uint32_t{0x7efffff0});
  put(0x30, std::uint64_t{0xffffffff81000200});
  const Bytes before = image;
  const auto table = RelocationTable::create({0, kBase + 0x30, 0, kBase + 0x20, 0, kBase + 0x10},
                                             kStart, image.size());
  REQUIRE(table);
  CHECK(table->count() == 3);
  table->apply(image, 0x4000000);
  const auto get = [&](std::size_t at, auto value) {
    std::memcpy(&value, image.data() + at, sizeof(value));
    return value;
  };
  CHECK(get(0x10, std::uint32_t{}) == 0x85000100);
  CHECK(get(0x20, std::uint32_t{}) == 0x7afffff0);
  CHECK(get(0x30, std::uint64_t{}) == 0xffffffff85000200);
  put(0x10, std::uint32_t{0x81000100});
  put(0x20, std::uint32_t{0x7efffff0});
  put(0x30, std::uint64_t{0xffffffff81000200});
  CHECK(image == before);
}

TEST_CASE("relocations: newer kernels have two kinds only") {
  Bytes image(64);
  const auto table = RelocationTable::create({0, kBase + 8, 0, kBase + 16}, kStart, image.size());
  REQUIRE(table);
  table->apply(image, 0x200000);
  CHECK(image[18] == std::byte{0x20});
  CHECK(image[10] == std::byte{0x20});
}

TEST_CASE("relocations: what does not hold together to the last word is no table") {
  const auto accepted = [](std::vector<std::uint32_t> words, std::uint64_t size = 0x1000) {
    return RelocationTable::create(std::move(words), kStart, size).has_value();
  };
  CHECK(accepted({0, kBase, 0, kBase, 0, kBase}));
  CHECK(accepted({0, kBase + 0xff8, 0, kBase + 0xffc, 0, kBase + 0xffc}));
  CHECK_FALSE(accepted({}));
  CHECK_FALSE(accepted({0}));
  CHECK_FALSE(accepted({0, 0, 0}));
  CHECK_FALSE(accepted({0, kBase, 0}));
  CHECK_FALSE(accepted({0, 0, kBase}));
  CHECK_FALSE(accepted({kBase, 0, kBase, 0, kBase}));
  CHECK_FALSE(accepted({0, kBase, 0, kBase, 0, kBase, 0, kBase}));
  // Places outside of the image, before and behind, or with their last byte outside.
  CHECK_FALSE(accepted({0, kBase + 0xff9, 0, kBase, 0, kBase}));
  CHECK_FALSE(accepted({0, kBase, 0, kBase + 0xffd, 0, kBase}));
  CHECK_FALSE(accepted({0, kBase, 0, kBase, 0, kBase + 0x1000}));
  CHECK_FALSE(accepted({0, kBase - 4, 0, kBase, 0, kBase}));
  CHECK_FALSE(accepted({0, 4, 0, kBase, 0, kBase}));
  CHECK_FALSE(accepted({0, kBase, 0, kBase}, 4));
  CHECK_FALSE(RelocationTable::create({0, kBase, 0, kBase}, 0x81000000, 0x1000).has_value());
  CHECK_FALSE(RelocationTable::create({0, kBase, 0, kBase}, kStart, ~0ULL).has_value());
}

constexpr std::array kCompressions = {Compression::kLz4, Compression::kZstd, Compression::kGzip,
                                      Compression::kXz, Compression::kBzip2};
constexpr std::uint64_t kLimit = 64U << 20;

TEST_CASE("payload: each compression is known by its content and unpacks") {
  // Large enough for two LZ4 blocks, small enough to be quick.
  Bytes content = pattern(9U << 20);
  std::fill(content.begin() + 0x100000, content.end() - 0x1000, std::byte{0xe8});
  for (const Compression compression : kCompressions) {
    CAPTURE(compression_name(compression));
    const Bytes payload = compress(content, compression);
    CHECK(identify_payload(payload) == compression);
    const auto unpacked = unpack_payload(payload, compression, kLimit);
    REQUIRE(unpacked);
    REQUIRE(unpacked->size() == content.size());
    CHECK(std::memcmp(unpacked->data(), content.data(), content.size()) == 0);
  }
  CHECK(identify_payload(bytes_of(std::string("\x5d\0\0\0 lzma", 9))) == Compression::kUnknown);
  CHECK(identify_payload(bytes_of("BZ")) == Compression::kUnknown);
  CHECK(identify_payload({}) == Compression::kUnknown);
}

TEST_CASE("payload: one that unpacks to anything but its declared size is refused") {
  const Bytes content = pattern(100'000);
  for (const Compression compression : kCompressions) {
    CAPTURE(compression_name(compression));
    const Bytes payload = compress(content, compression);
    for (const std::uint32_t size : {0U, 1U, 99'999U, 100'001U, 0x7fffffffU, 0xffffffffU}) {
      CAPTURE(size);
      const auto result = unpack_payload(with_declared_size(payload, size), compression, kLimit);
      REQUIRE_FALSE(result);
      CHECK(result.error().code() == ErrorCode::kBadInput);
    }
  }
}

TEST_CASE("payload: a bomb costs what it declares") {
  // 40 MiB of zeros in a few KiB, said to be 4 KiB.
  const Bytes zeros(40U << 20);
  for (const Compression compression : kCompressions) {
    CAPTURE(compression_name(compression));
    const Bytes bomb = with_declared_size(compress(zeros, compression), 4096);
    CHECK_FALSE(unpack_payload(bomb, compression, kLimit));
  }
  const auto over = unpack_payload(compress(zeros, Compression::kLz4), Compression::kLz4, 1U << 20);
  REQUIRE_FALSE(over);
  CHECK(over.error().message().find("at most 1048576") != std::string::npos);
}

TEST_CASE("payload: damaged or truncated ones are refused") {
  const Bytes content = pattern(50'000);
  for (const Compression compression : kCompressions) {
    CAPTURE(compression_name(compression));
    const Bytes payload = compress(content, compression);
    for (const std::size_t size : {0UL, 3UL, 4UL, 5UL, 8UL, 20UL, payload.size() / 2}) {
      CAPTURE(size);
      CHECK_FALSE(unpack_payload(with_declared_size(cut(payload, std::max(size, 4UL)), 50'000),
                                 compression, kLimit));
    }
    Bytes damaged = payload;
    damaged[2] ^= std::byte{0x55};
    CHECK_FALSE(unpack_payload(damaged, compression, kLimit));
  }
  CHECK_FALSE(unpack_payload(Bytes(3), Compression::kLz4, kLimit));
}

}  // namespace
}  // namespace vireo
