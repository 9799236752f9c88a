// SPDX-License-Identifier: Apache-2.0
// A snapshot's file, without the guest's memory in it: header, sections, and the tables that say
// where memory is (FORMAT.md). What the tables say is src/memory's to know.
//
//   TRY_ASSIGN(SnapshotFile file, SnapshotFile::read(fd));
//   TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(file.sections()));
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/snapshot/file_format.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

using SnapshotUuid = std::array<std::uint8_t, 16>;

/// What a header says about the machine and its memory.
struct SnapshotFacts {
  std::uint32_t architecture = vsnap::kArchX86_64;
  bool diff = false;         ///< has only what changed since `parent`
  bool compressed = false;   ///< memory is in frames
  bool memory_file = false;  ///< memory is in a file of its own, which MemoryFileName names
  SnapshotUuid uuid = {};
  SnapshotUuid parent = {};
  std::uint64_t created_ns = 0;  ///< since the epoch
  std::uint64_t pages = 0;       ///< of guest memory, 4 KiB each
};

/// The file beside the snapshot that has its memory, if one has: page n at 4096 n.
struct MemoryFileName {
  static constexpr std::string_view kTag = "memory-file";
  static constexpr std::uint32_t kVersion = 1;
  static constexpr std::size_t kNameMax = 255;
  std::string name;  // in the snapshot's directory

  void fields(auto& ar) { ar.text(name, kNameMax); }
};

/// Where guest memory is in its file.
struct MemoryPlace {
  std::uint64_t offset = 0;  ///< a multiple of the page size
  std::uint64_t size = 0;    ///< bytes in the file
  std::uint64_t pages = 0;   ///< places for pages, whatever they take in the file
};

/// The bytes may be anybody's: all that goes wrong is an Error (kBadInput) without the file's name.
class SnapshotFile {
 public:
  /// Reads header, sections and page table, and checks them: they are whole, lie where the header
  /// says, and the file has the length that it had.
  static Result<SnapshotFile> read(int fd);

  const SnapshotFacts& facts() const { return facts_; }
  const MemoryPlace& memory() const { return memory_; }
  /// Refer to this object.
  std::span<const SnapshotSection> sections() const { return sections_; }
  std::span<const std::byte> page_table() const { return page_table_; }
  /// As page_table(), read only when it is asked for.
  Result<std::vector<std::byte>> read_page_checksums(int fd) const;
  Result<std::vector<std::byte>> read_frame_table(int fd) const;

 private:
  Result<> take_header(const vsnap::Header& header, std::uint64_t file_size);
  Result<> check_memory(std::uint64_t file_size) const;
  Result<> read_sections(int fd);

  vsnap::Header header_ = {};
  SnapshotFacts facts_;
  MemoryPlace memory_;
  std::vector<std::byte> table_;
  std::vector<std::vector<std::byte>> contents_;
  std::vector<SnapshotSection> sections_;
  std::vector<std::byte> page_table_;
};

/// What a file has beside memory.
struct SnapshotTables {
  std::span<const std::byte> page_table;
  std::span<const std::byte> page_checksums;
  std::span<const std::byte> frame_table = {};
};

/// Where memory may begin in a file with so many pages whose other parts are not yet known.
std::uint64_t snapshot_memory_offset(std::uint64_t pages);
/// Where it may begin at the earliest, with these sections and tables of these sizes.
std::uint64_t snapshot_memory_offset(std::span<const SnapshotSection> sections,
                                     std::uint64_t page_table, std::uint64_t page_checksums,
                                     std::uint64_t frame_table);

/// Writes all but memory, which is there already or still to come, and gives the file its length:
/// `memory` begins where it ends, if that is in another.
/// What is in the file is its caller's to sync. Errors: kSystem, and kInternal where the parts do
/// not fit in front of memory.
Result<> write_snapshot_file(int fd, const SnapshotFacts& facts,
                             std::span<const SnapshotSection> sections,
                             const SnapshotTables& tables, const MemoryPlace& memory);

}  // namespace vireo
