// SPDX-License-Identifier: Apache-2.0
// zlib then promises not to write to its input.
#define ZLIB_CONST

#include "boot/payload.h"

#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include <bzlib.h>
#include <lz4.h>
#include <lzma.h>
#include <sys/mman.h>
#include <zlib.h>
#include <zstd.h>

#include <fmt/core.h>

#include "src/base/endian.h"

namespace vireo {

namespace {

using Input = std::span<const std::byte>;
using Output = std::span<std::byte>;

constexpr std::uint32_t kLz4LegacyMagic = 0x184c2102;
constexpr std::uint32_t kZstdMagic = 0xfd2fb528;
constexpr std::array<unsigned char, 3> kGzipMagic = {0x1f, 0x8b, 0x08};
constexpr std::array<unsigned char, 6> kXzMagic = {0xfd, '7', 'z', 'X', 'Z', 0};
constexpr std::array<unsigned char, 3> kBzip2Magic = {'B', 'Z', 'h'};
/// The dictionary is 32 MiB in kernels; this leaves room and bounds what a hostile one asks for.
constexpr std::uint64_t kXzMemoryMax = std::uint64_t{256} << 20;
/// The size at the end that is not part of the compressed data.
constexpr std::size_t kSizeBytes = sizeof(le32);

bool starts_with(Input bytes, std::span<const unsigned char> magic) {
  return bytes.size() >= magic.size() && std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
}

std::uint32_t word_at(Input bytes, std::size_t offset) {
  le32 word;
  std::memcpy(&word, bytes.subspan(offset, sizeof(word)).data(), sizeof(word));
  return word;
}

/// The libraries count in these types; sizes are at most 1 GiB here, so nothing is cut.
template <typename T>
T narrow(std::size_t size) {
  CHECK(size <= static_cast<std::size_t>(std::numeric_limits<T>::max()));
  return static_cast<T>(size);
}

// Each of these fills `out` to its last byte, or says false.

bool unpack_lz4(Input in, Output out) {
  // Legacy frames: le32 size, block; blocks do not refer to each other. The magic may be repeated.
  while (in.size() >= sizeof(le32)) {
    const std::uint32_t size = word_at(in, 0);
    in = in.subspan(sizeof(le32));
    if (size == kLz4LegacyMagic) {
      continue;
    }
    if (size == 0 || size > in.size() || out.empty()) {
      return false;
    }
    const int written = LZ4_decompress_safe(reinterpret_cast<const char*>(in.data()),
                                            reinterpret_cast<char*>(out.data()), narrow<int>(size),
                                            narrow<int>(out.size()));
    if (written <= 0) {
      return false;
    }
    in = in.subspan(size);
    out = out.subspan(static_cast<std::size_t>(written));
  }
  return in.empty() && out.empty();
}

bool unpack_zstd(Input in, Output out) {
  return ZSTD_decompress(out.data(), out.size(), in.data(), in.size()) == out.size();
}

bool unpack_gzip(Input in, Output out) {
  z_stream stream = {};
  constexpr int kGzipHeader = 16;
  if (inflateInit2(&stream, MAX_WBITS + kGzipHeader) != Z_OK) {
    return false;
  }
  stream.next_in = reinterpret_cast<const Bytef*>(in.data());
  stream.avail_in = narrow<uInt>(in.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = narrow<uInt>(out.size());
  const int status = inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
  return status == Z_STREAM_END && stream.avail_out == 0;
}

bool unpack_xz(Input in, Output out) {
  std::uint64_t memory_limit = kXzMemoryMax;
  std::size_t in_position = 0;
  std::size_t out_position = 0;
  const lzma_ret status = lzma_stream_buffer_decode(
      &memory_limit, 0, nullptr, reinterpret_cast<const std::uint8_t*>(in.data()), &in_position,
      in.size(), reinterpret_cast<std::uint8_t*>(out.data()), &out_position, out.size());
  return status == LZMA_OK && out_position == out.size();
}

bool unpack_bzip2(Input in, Output out) {
  auto size = narrow<unsigned>(out.size());
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): the library only reads its source.
  char* const source = const_cast<char*>(reinterpret_cast<const char*>(in.data()));
  const int status = BZ2_bzBuffToBuffDecompress(reinterpret_cast<char*>(out.data()), &size, source,
                                                narrow<unsigned>(in.size()), 0, 0);
  return status == BZ_OK && size == out.size();
}

bool unpack(Compression compression, Input in, Output out) {
  switch (compression) {
    case Compression::kLz4:
      return unpack_lz4(in, out);
    case Compression::kZstd:
      return unpack_zstd(in, out);
    case Compression::kGzip:
      return unpack_gzip(in, out);
    case Compression::kXz:
      return unpack_xz(in, out);
    case Compression::kBzip2:
      return unpack_bzip2(in, out);
    case Compression::kUnknown:
      return false;
  }
  std::unreachable();
}

}  // namespace

const char* compression_name(Compression compression) {
  switch (compression) {
    case Compression::kLz4:
      return "LZ4";
    case Compression::kZstd:
      return "zstd";
    case Compression::kGzip:
      return "gzip";
    case Compression::kXz:
      return "xz";
    case Compression::kBzip2:
      return "bzip2";
    case Compression::kUnknown:
      return "unknown";
  }
  std::unreachable();
}

Compression identify_payload(std::span<const std::byte> payload) {
  if (starts_with(payload, kGzipMagic)) {
    return Compression::kGzip;
  }
  if (starts_with(payload, kXzMagic)) {
    return Compression::kXz;
  }
  if (starts_with(payload, kBzip2Magic)) {
    return Compression::kBzip2;
  }
  if (payload.size() >= sizeof(le32)) {
    switch (word_at(payload, 0)) {
      case kLz4LegacyMagic:
        return Compression::kLz4;
      case kZstdMagic:
        return Compression::kZstd;
      default:
        break;
    }
  }
  return Compression::kUnknown;
}

Result<Mapping> unpack_payload(std::span<const std::byte> payload, Compression compression,
                               std::uint64_t size_max) {
  CHECK(compression != Compression::kUnknown);
  const char* const name = compression_name(compression);
  if (payload.size() <= kSizeBytes || payload.size() > size_max) {
    return fail(ErrorCode::kBadInput,
                fmt::format("a damaged {} payload of {} bytes", name, payload.size()));
  }
  const std::uint32_t size = word_at(payload, payload.size() - kSizeBytes);
  if (size == 0 || size > size_max) {
    return fail(
        ErrorCode::kBadInput,
        fmt::format("its {} payload declares {} bytes when unpacked; at most {} are allowed", name,
                    size, size_max));
  }
  TRY_ASSIGN(
      Mapping memory,
      Mapping::create(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                      0, fmt::format("{} MiB to unpack the kernel", size >> 20)));
  // A hint: large pages save thousands of faults in a buffer that lives for milliseconds.
  ::madvise(memory.data(), memory.size(), MADV_HUGEPAGE);
  const std::size_t trailer = compression == Compression::kGzip ? 0 : kSizeBytes;
  if (!unpack(compression, payload.first(payload.size() - trailer), memory.bytes())) {
    return fail(ErrorCode::kBadInput,
                fmt::format("its {} payload is damaged, or does not unpack to the {} bytes that it "
                            "declares",
                            name, size));
  }
  return memory;
}

}  // namespace vireo
