// SPDX-License-Identifier: Apache-2.0
// Small synthetic kernels, whole or broken on purpose, for the tests and the fuzz corpus.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <asm/bootparam.h>
#include <elf.h>

#include "boot/payload.h"

namespace vireo::testing {

using Bytes = std::vector<std::byte>;

inline constexpr std::uint64_t kLinkAddress = 0x1000000;
inline constexpr std::uint64_t kVirtualBase = 0xffffffff80000000;

struct ElfSegment {
  std::uint64_t address = kLinkAddress;
  Bytes content;
  std::uint64_t memory_size = 0;  ///< 0: as much as the content
};

struct ElfNote {
  std::string owner;
  std::uint32_t type = 0;
  Bytes descriptor;
};

struct ElfKernel {
  std::uint64_t entry = kLinkAddress;
  std::vector<ElfSegment> segments;
  std::vector<ElfNote> notes;
  /// Words of the relocation table, as they stand in the file.
  std::vector<std::uint32_t> relocations;
  /// A last touch on the headers before they are written.
  std::function<void(Elf64_Ehdr&, std::vector<Elf64_Phdr>&)> spoil;
};

Bytes build_elf(const ElfKernel& kernel);

/// Two segments with a hole between, a Linux note, and a relocation table of all three kinds.
ElfKernel linux_kernel();
/// One segment and a PVH note.
ElfKernel pvh_kernel(std::uint64_t entry = kLinkAddress);

Bytes bytes_of(const std::string& text);
/// `size` bytes that compress badly and differ everywhere.
Bytes pattern(std::size_t size, std::uint32_t seed = 1);

/// A payload as kernel builds make it: compressed, with the size behind it where that is usual.
Bytes compress(const Bytes& content, Compression compression);
/// Compressed data of another declared size.
Bytes with_declared_size(Bytes payload, std::uint32_t size);

Bytes build_bzimage(const Bytes& payload, const std::function<void(setup_header&)>& spoil = {});

/// A directory of the test's own, removed with all that is in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();

  std::string path(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  /// Writes a file and returns its path.
  std::string file(const std::string& name, std::span<const std::byte> content) const;

 private:
  std::string path_;
};

}  // namespace vireo::testing
