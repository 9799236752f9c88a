// SPDX-License-Identifier: Apache-2.0
// The bytes of a snapshot file that are not in sections: FORMAT.md has them one by one.
//
//   0           +---------------------------+
//               | header                    |  4096 bytes
//               +---------------------------+
//               | section table, sections   |
//               | page table                |  which page is where
//               | page checksums            |
//               | frame table               |  of a compressed file
//   a multiple  +---------------------------+
//   of 4096     | guest memory              |  to the end of the file
//               +---------------------------+
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "src/base/endian.h"

namespace vireo::vsnap {

/// A line end of each kind shows a transfer that took the file for text.
inline constexpr std::array<char, 8> kMagic = {'v', 's', 'n', 'a', 'p', '\r', '\n', '\x1a'};
inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::uint32_t kArchX86_64 = 62;  // ELF's EM_X86_64
inline constexpr std::uint64_t kPageSize = 4096;
inline constexpr std::uint32_t kKindFull = 1;
inline constexpr std::uint32_t kKindDiff = 2;
inline constexpr std::uint32_t kFlagCompressed = 1;
inline constexpr std::uint32_t kFlagMemoryFile = 2;  // memory is in a file of its own

/// A piece of the file, and the checksum of its bytes.
struct Extent {
  le64 offset;
  le64 size;
  le64 checksum;
};

struct Header {
  std::array<char, 8> magic;
  le32 format_version;
  le32 architecture;
  le32 kind;
  le32 flags;
  std::array<std::uint8_t, 16> uuid;
  std::array<std::uint8_t, 16> parent;  // zeros where there is none
  le64 created_ns;                      // since the epoch
  le64 page_size;
  le64 pages;  // of guest memory
  Extent section_table;
  Extent page_table;
  Extent page_checksums;
  Extent frame_table;
  le64 memory_offset;
  le64 memory_size;   // bytes in the file, or in that of its own
  le64 memory_pages;  // places in it, which page table and checksums count in
  std::array<std::byte, 3888> reserved;
  le64 checksum;  // of all before it
};
static_assert(sizeof(Header) == kPageSize && alignof(Header) == 1);

struct SectionEntry {
  std::array<char, 16> tag;  // zeros behind it
  le32 index;
  le32 version;
  Extent extent;
  std::array<std::byte, 16> reserved;
};
static_assert(sizeof(SectionEntry) == 64 && alignof(SectionEntry) == 1);

}  // namespace vireo::vsnap
