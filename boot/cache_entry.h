// SPDX-License-Identifier: Apache-2.0
// One file of the kernel cache: a kernel unpacked, without its zero pages, laid out to be copied
// to guest memory by a few large reads.
//
//   0     | header, extents      | one block, with a checksum
//   4096  | extents' bytes       | each congruent to its guest address modulo 4 KiB
//   …     | relocation table     | checked in full wherever it is used
//
// The file's modification time is set to a whole second that the header repeats: whoever writes to
// the file later betrays himself by it, without a single byte being read.
//
// Machine-local: native byte order; a version that differs means "build it again".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "boot/byte_source.h"
#include "boot/kernel_image.h"
#include "src/base/error.h"

namespace vireo {

/// A 128-bit hash of a file's content.
struct ContentHash {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  bool operator==(const ContentHash&) const = default;
};

/// Writes `kernel`, whose bytes are in `source`, to the empty file `fd`, except for its times.
/// `mtime_s` is what the caller will set as modification time.
Result<> write_cache_entry(int fd, const KernelImage& kernel, const ByteSource& source,
                           const ContentHash& content, std::int64_t mtime_s);

/// Reads and checks header and length; the extents and the relocation table of the result refer to
/// `source`. Nothing where the entry is not whole, not ours, or not for this content.
std::optional<KernelImage> read_cache_entry(const ByteSource& source, const ContentHash& content,
                                            std::int64_t mtime_s);

ContentHash hash_content(std::span<const std::byte> bytes);

}  // namespace vireo
