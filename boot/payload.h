// SPDX-License-Identifier: Apache-2.0
// The compressed vmlinux inside a bzImage, unpacked on the host by the usual libraries.
//
//   LZ4 (legacy frames), zstd, xz, bzip2:  compressed data, then le32: size when unpacked
//   gzip:                                  compressed data; its own last le32 is that size
//   LZMA, LZO, anything else:              not known here; the guest's decompressor does it
//
// Hostile input: no more than the declared size is ever written, and that has a limit, so a payload
// that unpacks without end costs what it declares and is refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

enum class Compression : std::uint8_t { kLz4, kZstd, kGzip, kXz, kBzip2, kUnknown };

const char* compression_name(Compression compression);

/// By its first bytes.
Compression identify_payload(std::span<const std::byte> payload);

/// Unpacks a payload of a known compression into memory of our own, which is exactly as long as
/// the payload declares. Errors: kBadInput where it is damaged, or declares or unpacks to more
/// than `size_max` bytes; kSystem where memory runs out.
Result<Mapping> unpack_payload(std::span<const std::byte> payload, Compression compression,
                               std::uint64_t size_max);

}  // namespace vireo
