// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot/snapshot_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/checksum.h"
#include "src/base/fd.h"

namespace vireo {

namespace {

using vsnap::Extent;
using vsnap::Header;
using vsnap::kPageSize;
using vsnap::SectionEntry;

/// Limits of what is read into memory because a file says so.
constexpr std::uint64_t kSectionsBytesMax = std::uint64_t{64} << 20;
constexpr std::uint64_t kTableBytesMax = std::uint64_t{256} << 20;
/// 1 PiB: no host has more, and sums of it do not overflow.
constexpr std::uint64_t kPagesMax = std::uint64_t{1} << 38;
/// Room for sections in front of memory that is written before they are known.
constexpr std::uint64_t kSectionsRoom = std::uint64_t{4} << 20;
/// A page's share of the page table, where each page is a run of its own, and its checksum.
constexpr std::uint64_t kTableBytesOfPage = 16 + 8;
/// Each part of a file that we write begins at a multiple of it.
constexpr std::uint64_t kAlignment = 8;

constexpr std::uint64_t round_up(std::uint64_t number, std::uint64_t unit) {
  return (number + unit - 1) / unit * unit;
}

std::unexpected<Error> bad(const std::string& what) {
  return fail(ErrorCode::kBadInput, what);
}

std::uint64_t header_checksum(const Header& header) {
  return checksum(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, checksum)));
}

/// Whether the piece lies behind the header and before `end`.
bool lies_before(const Extent& extent, std::uint64_t end) {
  return extent.offset >= kPageSize && extent.offset <= end && extent.size <= end - extent.offset;
}

Result<std::vector<std::byte>> read_extent(int fd, const Extent& extent, std::string_view what) {
  std::vector<std::byte> bytes(extent.size);
  if (Result<> read = read_full_at(fd, bytes, extent.offset); !read) {
    return std::unexpected(std::move(read).error().context(what));
  }
  if (checksum(bytes) != extent.checksum) {
    return bad(fmt::format("{}: is damaged: its checksum is another one", what));
  }
  return bytes;
}

Result<> write_at(int fd, std::span<const std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return fail_errno(written < 0 ? errno : EIO, "writing the snapshot");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

}  // namespace

Result<SnapshotFile> SnapshotFile::read(int fd) {
  TRY_ASSIGN(const std::uint64_t size, regular_file_size(fd));
  SnapshotFile file;
  if (size < sizeof(Header)) {
    return bad("is no snapshot of vireo's: it is too short");
  }
  TRY(read_full_at(fd, std::as_writable_bytes(std::span(&file.header_, 1)), 0));
  TRY(file.take_header(file.header_, size));
  TRY(file.read_sections(fd));
  TRY_ASSIGN(file.page_table_, read_extent(fd, file.header_.page_table, "page table"));
  return file;
}

Result<> SnapshotFile::take_header(const Header& header, std::uint64_t file_size) {
  if (header.magic != vsnap::kMagic) {
    return bad("is no snapshot of vireo's");
  }
  if (header.format_version == 0 || header.format_version > vsnap::kFormatVersion) {
    return bad(fmt::format("is of format version {}; this vireo reads versions up to {}",
                           std::uint32_t{header.format_version}, vsnap::kFormatVersion));
  }
  if (header_checksum(header) != header.checksum) {
    return bad("header: is damaged: its checksum is another one");
  }
  facts_ = {.architecture = header.architecture,
            .diff = header.kind == vsnap::kKindDiff,
            .compressed = (header.flags & vsnap::kFlagCompressed) != 0,
            .memory_file = (header.flags & vsnap::kFlagMemoryFile) != 0,
            .uuid = header.uuid,
            .parent = header.parent,
            .created_ns = header.created_ns,
            .pages = header.pages};
  memory_ = {
      .offset = header.memory_offset, .size = header.memory_size, .pages = header.memory_pages};
  if (header.kind != vsnap::kKindFull && header.kind != vsnap::kKindDiff) {
    return bad(fmt::format("header: is of kind {}", std::uint32_t{header.kind}));
  }
  if ((header.flags & ~(vsnap::kFlagCompressed | vsnap::kFlagMemoryFile)) != 0 ||
      (facts_.compressed && facts_.memory_file)) {
    return bad(fmt::format("header: has flags {:#x}", std::uint32_t{header.flags}));
  }
  if (header.page_size != kPageSize || facts_.pages == 0 || facts_.pages > kPagesMax) {
    return bad(fmt::format("header: has {} pages of {} bytes", facts_.pages,
                           std::uint64_t{header.page_size}));
  }
  TRY(check_memory(file_size));
  memory_.offset = facts_.memory_file ? 0 : memory_.offset;
  struct Table {
    std::string_view name;
    const Extent& extent;
    std::uint64_t most;
  };
  // Before memory is room for any size, in a file of holes.
  for (const auto& [name, extent, most] :
       {Table{"a section table", header.section_table, kSectionsBytesMax},
        Table{"a page table", header.page_table, kTableBytesMax},
        Table{"page checksums", header.page_checksums, memory_.pages * sizeof(std::uint64_t)},
        Table{"a frame table", header.frame_table, kTableBytesMax}}) {
    if (!lies_before(extent, header.memory_offset) || extent.size > most) {
      return bad(fmt::format("header: has {} of {} bytes at {}", name, std::uint64_t{extent.size},
                             std::uint64_t{extent.offset}));
    }
  }
  return {};
}

Result<> SnapshotFile::check_memory(std::uint64_t file_size) const {
  const bool sound = memory_.offset % kPageSize == 0 && memory_.offset <= kPagesMax * kPageSize &&
                     memory_.size <= kPagesMax * kPageSize && memory_.pages <= kPagesMax &&
                     (facts_.compressed || memory_.pages == memory_.size / kPageSize);
  // What is in another file is looked for there: open_memory_file().
  const std::uint64_t end = memory_.offset + (facts_.memory_file ? 0 : memory_.size);
  if (sound && end > file_size) {
    return bad(fmt::format("is truncated: it has {} bytes of {}", file_size, end));
  }
  if (!sound || end != file_size) {
    return bad(fmt::format("header: has memory of {} pages in {} bytes at {}, in a file of {}",
                           memory_.pages, memory_.size, memory_.offset, file_size));
  }
  return {};
}

Result<> SnapshotFile::read_sections(int fd) {
  const Extent& table = header_.section_table;
  if (table.size % sizeof(SectionEntry) != 0 ||
      table.size > SnapshotReader::kSectionsMax * sizeof(SectionEntry)) {
    return bad(fmt::format("section table: has {} bytes", std::uint64_t{table.size}));
  }
  TRY_ASSIGN(table_, read_extent(fd, table, "section table"));
  std::uint64_t total = 0;
  const std::size_t count = table_.size() / sizeof(SectionEntry);
  contents_.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::span entry_bytes =
        std::span(table_).subspan(i * sizeof(SectionEntry), sizeof(SectionEntry));
    SectionEntry entry;
    std::memcpy(&entry, entry_bytes.data(), sizeof(entry));
    // The tag stays in the table, which lives as long as the section.
    const auto* const text = static_cast<const char*>(static_cast<const void*>(entry_bytes.data()));
    const std::string_view tag(text, ::strnlen(text, entry.tag.size()));
    if (!lies_before(entry.extent, header_.memory_offset)) {
      return std::unexpected(
          section_error(tag, entry.index, "lies outside the file's part for it"));
    }
    total += entry.extent.size;
    if (total > kSectionsBytesMax) {
      return bad("section table: has more bytes of sections than any machine");
    }
    TRY_ASSIGN(std::vector<std::byte> bytes,
               read_extent(fd, entry.extent,
                           fmt::format("section {} {}", tag, std::uint32_t{entry.index})));
    contents_.push_back(std::move(bytes));
    sections_.push_back(
        {.tag = tag, .index = entry.index, .version = entry.version, .bytes = contents_.back()});
  }
  return {};
}

Result<std::vector<std::byte>> SnapshotFile::read_page_checksums(int fd) const {
  return read_extent(fd, header_.page_checksums, "page checksums");
}

Result<std::vector<std::byte>> SnapshotFile::read_frame_table(int fd) const {
  return read_extent(fd, header_.frame_table, "frame table");
}

std::uint64_t snapshot_memory_offset(std::uint64_t pages) {
  return round_up(kPageSize + kSectionsRoom + pages * kTableBytesOfPage, kPageSize);
}

std::uint64_t snapshot_memory_offset(std::span<const SnapshotSection> sections,
                                     std::uint64_t page_table, std::uint64_t page_checksums,
                                     std::uint64_t frame_table) {
  std::uint64_t room = kPageSize + sections.size() * sizeof(SectionEntry);
  for (const SnapshotSection& section : sections) {
    room += round_up(section.bytes.size(), kAlignment);
  }
  for (const std::uint64_t table : {page_table, page_checksums, frame_table}) {
    room += round_up(table, kAlignment);
  }
  return round_up(room, kPageSize);
}

Result<> write_snapshot_file(int fd, const SnapshotFacts& facts,
                             std::span<const SnapshotSection> sections,
                             const SnapshotTables& tables, const MemoryPlace& memory) {
  std::uint64_t next = kPageSize;
  const auto place = [&next](std::span<const std::byte> bytes) {
    const Extent extent = {.offset = next, .size = bytes.size(), .checksum = checksum(bytes)};
    next += round_up(bytes.size(), kAlignment);
    return extent;
  };
  std::vector<SectionEntry> entries(sections.size());
  // The table is in front of its sections, but knows their places.
  next += entries.size() * sizeof(SectionEntry);
  for (std::size_t i = 0; i < sections.size(); ++i) {
    std::ranges::copy(sections[i].tag, entries[i].tag.begin());
    entries[i].index = sections[i].index;
    entries[i].version = sections[i].version;
    entries[i].extent = place(sections[i].bytes);
  }
  const std::span<const std::byte> entry_bytes = std::as_bytes(std::span(entries));
  Header header = {};
  header.magic = vsnap::kMagic;
  header.format_version = vsnap::kFormatVersion;
  header.architecture = facts.architecture;
  header.kind = facts.diff ? vsnap::kKindDiff : vsnap::kKindFull;
  header.flags = (facts.compressed ? vsnap::kFlagCompressed : 0) |
                 (facts.memory_file ? vsnap::kFlagMemoryFile : 0);
  header.uuid = facts.uuid;
  header.parent = facts.parent;
  header.created_ns = facts.created_ns;
  header.page_size = kPageSize;
  header.pages = facts.pages;
  header.section_table = {
      .offset = kPageSize, .size = entry_bytes.size(), .checksum = checksum(entry_bytes)};
  header.page_table = place(tables.page_table);
  header.page_checksums = place(tables.page_checksums);
  header.frame_table = place(tables.frame_table);
  header.memory_offset = memory.offset;
  header.memory_size = memory.size;
  header.memory_pages = memory.pages;
  header.checksum = header_checksum(header);
  if (next > memory.offset) {
    return fail(ErrorCode::kInternal, "the snapshot's sections have no room before its memory");
  }
  TRY(write_at(fd, entry_bytes, header.section_table.offset));
  for (std::size_t i = 0; i < sections.size(); ++i) {
    TRY(write_at(fd, sections[i].bytes, entries[i].extent.offset));
  }
  TRY(write_at(fd, tables.page_table, header.page_table.offset));
  TRY(write_at(fd, tables.page_checksums, header.page_checksums.offset));
  TRY(write_at(fd, tables.frame_table, header.frame_table.offset));
  TRY(write_at(fd, std::as_bytes(std::span(&header, 1)), 0));
  // Holes at the end of memory belong to it.
  const std::uint64_t size = memory.offset + (facts.memory_file ? 0 : memory.size);
  if (::ftruncate(fd, static_cast<off_t>(size)) < 0) {
    return fail_errno(errno, "writing the snapshot");
  }
  return {};
}

}  // namespace vireo
