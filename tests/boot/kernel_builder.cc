// SPDX-License-Identifier: Apache-2.0
#include "tests/boot/kernel_builder.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <bzlib.h>
#include <fcntl.h>
#include <lz4.h>
#include <lzma.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "src/base/endian.h"
#include "src/base/error.h"

namespace vireo::testing {

namespace {

template <typename T>
void append(Bytes& bytes, const T& value) {
  const auto raw = std::as_bytes(std::span(&value, 1));
  bytes.insert(bytes.end(), raw.begin(), raw.end());
}

void append_bytes(Bytes& bytes, std::span<const std::byte> more) {
  bytes.insert(bytes.end(), more.begin(), more.end());
}

void pad(Bytes& bytes, std::size_t alignment) {
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
}

Bytes note_bytes(const std::vector<ElfNote>& notes) {
  Bytes bytes;
  for (const ElfNote& note : notes) {
    append(bytes, Elf64_Nhdr{.n_namesz = static_cast<Elf64_Word>(note.owner.size() + 1),
                             .n_descsz = static_cast<Elf64_Word>(note.descriptor.size()),
                             .n_type = note.type});
    append_bytes(bytes, std::as_bytes(std::span(note.owner.c_str(), note.owner.size() + 1)));
    pad(bytes, 4);
    append_bytes(bytes, note.descriptor);
    pad(bytes, 4);
  }
  return bytes;
}

template <typename To, typename From>
To* pointer(From* from) {
  return reinterpret_cast<To*>(from);
}

Bytes compress_xz(const Bytes& content) {
  lzma_options_lzma options = {};
  CHECK(!lzma_lzma_preset(&options, 0));
  // As kernel builds do: the branch filter of x86 before LZMA2.
  std::array<lzma_filter, 3> filters = {
      lzma_filter{LZMA_FILTER_X86, nullptr},
      lzma_filter{LZMA_FILTER_LZMA2, &options},
      lzma_filter{LZMA_VLI_UNKNOWN, nullptr},
  };
  Bytes out(lzma_stream_buffer_bound(content.size()));
  std::size_t size = 0;
  CHECK(lzma_stream_buffer_encode(filters.data(), LZMA_CHECK_CRC32, nullptr,
                                  pointer<const std::uint8_t>(content.data()), content.size(),
                                  pointer<std::uint8_t>(out.data()), &size, out.size()) == LZMA_OK);
  out.resize(size);
  return out;
}

Bytes compress_gzip(const Bytes& content) {
  z_stream stream = {};
  CHECK(deflateInit2(&stream, 1, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  Bytes out(deflateBound(&stream, content.size()));
  Bytes in = content;
  stream.next_in = pointer<Bytef>(in.data());
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = pointer<Bytef>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

Bytes compress_lz4(const Bytes& content) {
  Bytes out;
  append(out, le32(0x184c2102));
  constexpr std::size_t kBlock = std::size_t{8} << 20;
  for (std::size_t at = 0; at < content.size(); at += kBlock) {
    const auto in = std::span(content).subspan(at, std::min(kBlock, content.size() - at));
    Bytes block(static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(in.size()))));
    const int size =
        LZ4_compress_default(pointer<const char>(in.data()), pointer<char>(block.data()),
                             static_cast<int>(in.size()), static_cast<int>(block.size()));
    CHECK(size > 0);
    append(out, le32(static_cast<std::uint32_t>(size)));
    append_bytes(out, std::span(block).first(static_cast<std::size_t>(size)));
  }
  return out;
}

Bytes compress_zstd(const Bytes& content) {
  Bytes out(ZSTD_compressBound(content.size()));
  out.resize(ZSTD_compress(out.data(), out.size(), content.data(), content.size(), 1));
  return out;
}

Bytes compress_bzip2(const Bytes& content) {
  Bytes in = content;
  Bytes out(content.size() + content.size() / 100 + 600);
  auto size = static_cast<unsigned>(out.size());
  CHECK(BZ2_bzBuffToBuffCompress(pointer<char>(out.data()), &size, pointer<char>(in.data()),
                                 static_cast<unsigned>(in.size()), 1, 0, 0) == BZ_OK);
  out.resize(size);
  return out;
}

}  // namespace

Bytes build_elf(const ElfKernel& kernel) {
  std::vector<Elf64_Phdr> headers;
  const Bytes notes = note_bytes(kernel.notes);
  const std::size_t count = kernel.segments.size() + (notes.empty() ? 0 : 1);
  Bytes body;
  const std::uint64_t body_at = sizeof(Elf64_Ehdr) + count * sizeof(Elf64_Phdr);
  for (const ElfSegment& segment : kernel.segments) {
    headers.push_back(
        {.p_type = PT_LOAD,
         .p_offset = body_at + body.size(),
         .p_vaddr = kVirtualBase + segment.address,
         .p_paddr = segment.address,
         .p_filesz = segment.content.size(),
         .p_memsz = std::max<std::uint64_t>(segment.memory_size, segment.content.size()),
         .p_align = 0x200000});
    append_bytes(body, segment.content);
  }
  if (!notes.empty()) {
    headers.push_back({.p_type = PT_NOTE,
                       .p_offset = body_at + body.size(),
                       .p_filesz = notes.size(),
                       .p_align = 4});
    append_bytes(body, notes);
  }
  pad(body, 8);
  Elf64_Ehdr header = {};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_entry = kernel.entry;
  header.e_phoff = sizeof(header);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<Elf64_Half>(headers.size());
  header.e_shoff = body_at + body.size();
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shnum = 1;
  if (kernel.spoil) {
    kernel.spoil(header, headers);
  }
  Bytes file;
  append(file, header);
  append_bytes(file, std::as_bytes(std::span(headers)));
  append_bytes(file, body);
  append(file, Elf64_Shdr{});
  append_bytes(file, std::as_bytes(std::span(kernel.relocations)));
  return file;
}

ElfKernel linux_kernel() {
  ElfKernel kernel;
  kernel.segments = {
      {.address = kLinkAddress, .content = pattern(0x5000)},
      {.address = kLinkAddress + 0x200000, .content = pattern(0x1234, 2), .memory_size = 0x100000}};
  kernel.notes = {{.owner = "Xen", .type = 18, .descriptor = Bytes(8)},
                  {.owner = "Linux", .type = 0x100, .descriptor = bytes_of("6.1.0-test")}};
  const std::uint32_t base = 0x80000000U + static_cast<std::uint32_t>(kLinkAddress);
  kernel.relocations = {0, base + 8, base + 0x200008, 0, base + 0x20, 0, base + 0x30, base + 0x34};
  return kernel;
}

ElfKernel pvh_kernel(std::uint64_t entry) {
  Bytes descriptor;
  append(descriptor, le32(static_cast<std::uint32_t>(entry)));
  ElfKernel kernel;
  kernel.entry = 0;
  kernel.segments = {{.address = kLinkAddress, .content = pattern(0x800), .memory_size = 0x2000}};
  kernel.notes = {{.owner = "GNU", .type = 3, .descriptor = Bytes(20)},
                  {.owner = "Xen", .type = 18, .descriptor = descriptor}};
  return kernel;
}

Bytes bytes_of(const std::string& text) {
  const auto raw = std::as_bytes(std::span(text));
  return {raw.begin(), raw.end()};
}

Bytes pattern(std::size_t size, std::uint32_t seed) {
  Bytes bytes(size);
  std::uint32_t state = seed * 2654435761U + 1;
  for (std::byte& byte : bytes) {
    state = state * 1664525U + 1013904223U;
    byte = static_cast<std::byte>((state >> 24) | 1U);
  }
  return bytes;
}

Bytes compress(const Bytes& content, Compression compression) {
  Bytes payload;
  switch (compression) {
    case Compression::kLz4:
      payload = compress_lz4(content);
      break;
    case Compression::kZstd:
      payload = compress_zstd(content);
      break;
    case Compression::kGzip:
      return compress_gzip(content);
    case Compression::kXz:
      payload = compress_xz(content);
      break;
    case Compression::kBzip2:
      payload = compress_bzip2(content);
      break;
    case Compression::kUnknown:
      payload = bytes_of("\x89LZO");
      break;
  }
  append(payload, le32(static_cast<std::uint32_t>(content.size())));
  return payload;
}

Bytes with_declared_size(Bytes payload, std::uint32_t size) {
  const le32 word(size);
  std::memcpy(payload.data() + payload.size() - sizeof(word), &word, sizeof(word));
  return payload;
}

Bytes build_bzimage(const Bytes& payload, const std::function<void(setup_header&)>& spoil) {
  constexpr std::size_t kSetupSize = 1024;
  constexpr std::size_t kPayloadAt = 0x400;
  Bytes code = pattern(kPayloadAt, 7);
  append_bytes(code, payload);
  pad(code, 16);
  setup_header header = {};
  header.setup_sects = 1;
  header.syssize = static_cast<std::uint32_t>(code.size() / 16);
  header.boot_flag = 0xaa55;
  header.jump = 0x6aeb;  // short jump over the header
  header.header = 0x53726448;
  header.version = 0x20f;
  header.loadflags = LOADED_HIGH;
  header.initrd_addr_max = 0x7fffffff;
  header.kernel_alignment = 0x200000;
  header.relocatable_kernel = 1;
  header.xloadflags = XLF_KERNEL_64;
  header.cmdline_size = 2047;
  header.payload_offset = kPayloadAt;
  header.payload_length = static_cast<std::uint32_t>(payload.size());
  header.pref_address = kLinkAddress;
  header.init_size = 0x800000;
  if (spoil) {
    spoil(header);
  }
  Bytes file(kSetupSize);
  std::memcpy(file.data() + 0x1f1, &header, sizeof(header));
  append_bytes(file, code);
  return file;
}

TemporaryDirectory::TemporaryDirectory() {
  std::string name = std::filesystem::temp_directory_path() / "vireo-boot-XXXXXX";
  CHECK(::mkdtemp(name.data()) != nullptr);
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TemporaryDirectory::file(const std::string& name,
                                     std::span<const std::byte> content) const {
  const std::string file = path(name);
  std::FILE* const stream = std::fopen(file.c_str(), "w");
  CHECK(stream != nullptr);
  CHECK(content.empty() ||
        std::fwrite(content.data(), 1, content.size(), stream) == content.size());
  std::fclose(stream);
  return file;
}

}  // namespace vireo::testing
