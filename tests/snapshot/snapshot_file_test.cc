// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot/snapshot_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include <fcntl.h>

#include <fmt/core.h>

#include "tests/snapshot/sample_file.h"

namespace vireo {
namespace {

using vsnap::Extent;
using vsnap::Header;
using vsnap::SectionEntry;

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

void check_same(const SnapshotFile& file, int fd, const Content& content) {
  const SnapshotFacts& facts = file.facts();
  CHECK(facts.architecture == content.facts.architecture);
  CHECK(facts.diff == content.facts.diff);
  CHECK(facts.compressed == content.facts.compressed);
  CHECK(facts.uuid == content.facts.uuid);
  CHECK(facts.parent == content.facts.parent);
  CHECK(facts.created_ns == content.facts.created_ns);
  CHECK(facts.pages == content.facts.pages);
  CHECK(file.memory().offset == content.memory.offset);
  CHECK(file.memory().size == content.memory.size);
  CHECK(file.memory().pages == content.memory.pages);
  REQUIRE(file.sections().size() == content.sections.size());
  for (std::size_t i = 0; i < content.sections.size(); ++i) {
    const SnapshotSection& section = file.sections()[i];
    CHECK(section.tag == content.sections[i].tag);
    CHECK(section.index == content.sections[i].index);
    CHECK(section.version == content.sections[i].version);
    CHECK(std::ranges::equal(section.bytes, content.sections[i].bytes));
  }
  CHECK(std::ranges::equal(file.page_table(), content.page_table));
  CHECK(file.read_page_checksums(fd).value() == content.page_checksums);
  CHECK(file.read_frame_table(fd).value() == content.frame_table);
}

TEST_CASE("snapshot file: what was written is read") {
  const UniqueFd file = new_file();
  Content content;
  SECTION("as it is") {}
  SECTION("a diff") {
    content.facts.diff = true;
    content.facts.parent = {9, 8, 7};
  }
  SECTION("with frames") {
    content.facts.compressed = true;
    content.frame_table = some_bytes(77, 5);
    content.memory.size = 1234;
  }
  SECTION("without sections, tables and data") {
    content.sections.clear();
    content.page_table.clear();
    content.page_checksums.clear();
    content.memory = {.offset = kPage, .size = 0, .pages = 0};
  }
  REQUIRE(content.write(file.get()));
  CHECK(regular_file_size(file.get()).value() == content.memory.offset + content.memory.size);
  const Result<SnapshotFile> read = SnapshotFile::read(file.get());
  INFO((read ? "" : read.error().message()));
  REQUIRE(read);
  check_same(*read, file.get(), content);
}

TEST_CASE("snapshot file: numbers are where FORMAT.md has them") {
  const Sample sample;
  const std::string magic("vsnap\r\n\x1a", 8);
  CHECK(std::memcmp(sample.get<std::array<char, 8>>(0).data(), magic.data(), 8) == 0);
  CHECK(sample.get<le32>(0x8) == 1);
  CHECK(sample.get<le32>(0xc) == 62);
  CHECK(sample.get<le32>(0x10) == 1);
  CHECK(sample.get<le32>(0x14) == 0);
  CHECK(sample.get<std::uint8_t>(0x18) == 1);
  CHECK(sample.get<std::uint8_t>(0x28) == 0);
  CHECK(sample.get<le64>(0x38) == 0x1122334455667788);
  CHECK(sample.get<le64>(0x40) == 4096);
  CHECK(sample.get<le64>(0x48) == 5);
  CHECK(sample.get<le64>(0x58) == 192);
  CHECK(sample.get<le64>(0x70) == 32);
  CHECK(sample.get<le64>(0x88) == 24);
  CHECK(sample.get<le64>(0xa0) == 0);
  CHECK(sample.get<le64>(0xb0) == kMemory);
  CHECK(sample.get<le64>(0xb8) == 12288);
  CHECK(sample.get<le64>(0xc0) == 3);
  CHECK(sample.get<le64>(0xff8) == sample.checksum_of(0, 0xff8));
  const std::uint64_t table = sample.get<le64>(0x50);
  CHECK(sample.get<le64>(0x60) == sample.checksum_of(table, 192));
  CHECK(sample.get<char>(table + 128 + 15) == 'r');
  CHECK(sample.get<le32>(table + 128 + 16) == 0xffffffff);
  CHECK(sample.get<le32>(table + 128 + 20) == 3);
  CHECK(sample.get<le64>(table + 128 + 32) == 5001);
}

TEST_CASE("snapshot file: what is no regular file, or no snapshot, is refused") {
  std::array<int, 2> pipe_ends = {};
  REQUIRE(::pipe2(pipe_ends.data(), O_CLOEXEC) == 0);
  const UniqueFd pipe(pipe_ends[0]);
  const UniqueFd other_end(pipe_ends[1]);
  const UniqueFd directory(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const UniqueFd zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  for (const int fd : {pipe.get(), directory.get(), zero.get()}) {
    const Result<SnapshotFile> read = SnapshotFile::read(fd);
    REQUIRE_FALSE(read);
    CHECK(read.error().code() == ErrorCode::kBadInput);
    CHECK(read.error().message() == "not a regular file");
  }
  CHECK(SnapshotFile::read(-1).error().errnum() == EBADF);

  const Sample sample;
  sample.put(0, std::array<char, 8>{'\x7f', 'E', 'L', 'F'});
  CHECK(sample.problem() == "is no snapshot of vireo's");
}

TEST_CASE("snapshot file: a file of another length is refused") {
  for (const std::uint64_t size : {0UL, 1UL, 8UL, 4095UL}) {
    const Sample sample;
    sample.set_size(size);
    CHECK(sample.problem() == "is no snapshot of vireo's: it is too short");
  }
  for (const std::uint64_t size : {4096UL, 4097UL, 4096UL + 100, kMemory - 1, kMemory, kMemory + 1,
                                   kSize - kPage, kSize - 1}) {
    const Sample sample;
    sample.set_size(size);
    CHECK(sample.problem() == "is truncated: it has " + std::to_string(size) + " bytes of 28672");
  }
  for (const std::uint64_t size : {kSize + 1, 2 * kSize}) {
    const Sample sample;
    sample.set_size(size);
    CHECK(sample.problem() ==
          "header: has memory of 3 pages in 12288 bytes at 16384, in a file of " +
              std::to_string(size));
  }
}

TEST_CASE("snapshot file: a header that says what cannot be is refused, by what it says") {
  struct Case {
    std::function<void(Header&)> change;
    std::string problem;
  };
  const std::string memory = "header: has memory of ";
  for (const auto& [change, problem] : std::vector<Case>{
           {[](Header& h) { h.magic[7] = 0; }, "is no snapshot of vireo's"},
           {[](Header& h) { h.format_version = 0; },
            "is of format version 0; this vireo reads versions up to 1"},
           {[](Header& h) { h.format_version = 2; },
            "is of format version 2; this vireo reads versions up to 1"},
           {[](Header& h) { h.kind = 0; }, "header: is of kind 0"},
           {[](Header& h) { h.kind = 3; }, "header: is of kind 3"},
           {[](Header& h) { h.flags = 4; }, "header: has flags 0x4"},
           {[](Header& h) { h.flags = 3; }, "header: has flags 0x3"},
           {[](Header& h) { h.flags = vsnap::kFlagMemoryFile; },
            "header: has memory of 3 pages in 12288 bytes at 16384, in a file of 28672"},
           {[](Header& h) { h.flags = 0x80000001; }, "header: has flags 0x80000001"},
           {[](Header& h) { h.page_size = 0; }, "header: has 5 pages of 0 bytes"},
           {[](Header& h) { h.page_size = 8192; }, "header: has 5 pages of 8192 bytes"},
           {[](Header& h) { h.pages = 0; }, "header: has 0 pages of 4096 bytes"},
           {[](Header& h) { h.pages = (1UL << 38) + 1; },
            "header: has 274877906945 pages of 4096 bytes"},
           {[](Header& h) { h.pages = kMost; },
            "header: has 18446744073709551615 pages of 4096 bytes"},
           {[](Header& h) { h.memory_offset = kMemory + 1; },
            memory + "3 pages in 12288 bytes at 16385, in a file of 28672"},
           {[](Header& h) { h.memory_offset = kMemory + kPage; },
            "is truncated: it has 28672 bytes of 32768"},
           {[](Header& h) { h.memory_offset = kMemory - kPage; },
            memory + "3 pages in 12288 bytes at 12288, in a file of 28672"},
           {[](Header& h) { h.memory_offset = kMost - kPage + 1; },
            memory + "3 pages in 12288 bytes at 18446744073709547520, in a file of 28672"},
           // In 64 bits these end where the file does.
           {[](Header& h) {
              h.memory_offset = kMost - kPage + 1;
              h.memory_size = kSize + kPage;
              h.memory_pages = 8;
            },
            memory + "8 pages in 32768 bytes at 18446744073709547520, in a file of 28672"},
           {[](Header& h) {
              h.flags = vsnap::kFlagCompressed;
              h.memory_offset = kSize + kPage;
              h.memory_size = kMost - kPage + 1;
            },
            memory + "3 pages in 18446744073709547520 bytes at 32768, in a file of 28672"},
           {[](Header& h) { h.memory_size = kMost; },
            memory + "3 pages in 18446744073709551615 bytes at 16384, in a file of 28672"},
           {[](Header& h) { h.memory_size = 0; },
            memory + "3 pages in 0 bytes at 16384, in a file of 28672"},
           {[](Header& h) { h.memory_pages = 2; },
            memory + "2 pages in 12288 bytes at 16384, in a file of 28672"},
           {[](Header& h) { h.memory_pages = 4; },
            memory + "4 pages in 12288 bytes at 16384, in a file of 28672"},
           {[](Header& h) {
              h.flags = vsnap::kFlagCompressed;
              h.memory_pages = (1UL << 38) + 1;
            },
            memory + "274877906945 pages in 12288 bytes at 16384, in a file of 28672"},
       }) {
    const Sample sample;
    sample.change(change);
    CHECK(sample.problem() == problem);
  }
  // Without the checksum of the rest nothing of it is believed, but for what it is.
  const Sample sample;
  Header header = sample.header();
  header.kind = 0;
  sample.put(0, header);
  CHECK(sample.problem() == "header: is damaged: its checksum is another one");
}

struct Table {
  const char* name;
  Extent Header::* extent;
};
constexpr std::array kTables = {
    Table{"a section table", &Header::section_table}, Table{"a page table", &Header::page_table},
    Table{"page checksums", &Header::page_checksums}, Table{"a frame table", &Header::frame_table}};

/// What is said of a table in `sample` that has such a place and size.
std::string table_problem(const Sample& sample, const Table& table, std::uint64_t offset,
                          std::uint64_t size) {
  sample.change([&](Header& header) {
    (header.*table.extent).offset = offset;
    (header.*table.extent).size = size;
  });
  return sample.problem();
}

std::string named(const Table& table, std::uint64_t offset, std::uint64_t size) {
  return fmt::format("header: has {} of {} bytes at {}", table.name, size, offset);
}

TEST_CASE("snapshot file: a table lies behind the header and before memory") {
  struct Case {
    std::uint64_t offset;
    std::uint64_t size;
  };
  for (const Table& table : kTables) {
    for (const auto& [offset, size] : {Case{0, 64},
                                       {kPage - 1, 64},
                                       {kMemory - 63, 64},
                                       {kMemory, 64},
                                       {kMemory + 1, 0},
                                       {kSize, 0},
                                       {kPage, kMemory - kPage + 1},
                                       {kPage, kMost},
                                       {kMost - 7, 16},
                                       {kMost, 1},
                                       {kMost - kPage + 1, 2 * kPage}}) {
      CHECK(table_problem(Sample(), table, offset, size) == named(table, offset, size));
    }
  }
  // To the last byte before memory it may go.
  const Sample sample;
  sample.change([&sample](Header& header) {
    header.page_table = {
        .offset = kMemory - 32, .size = 32, .checksum = sample.checksum_of(kMemory - 32, 32)};
  });
  CHECK(sample.read());
}

/// What is said of a section that has such a place and size.
std::string section_problem(std::uint64_t offset, std::uint64_t size) {
  const Sample sample;
  sample.change_entry(2, [&](SectionEntry& entry) {
    entry.extent.offset = offset;
    entry.extent.size = size;
  });
  return sample.problem();
}

TEST_CASE("snapshot file: a section lies behind the header and before memory") {
  struct Case {
    std::uint64_t offset;
    std::uint64_t size;
  };
  for (const auto& [offset, size] : {Case{0, 64},
                                     {kPage - 1, 64},
                                     {kMemory - 63, 64},
                                     {kMemory, 64},
                                     {kSize - 64, 64},
                                     {kPage, kMost},
                                     {kMost - 7, 16},
                                     {kMost, 1}}) {
    CHECK(section_problem(offset, size) ==
          "section a-tag-of-16-char 4294967295: lies outside the file's part for it");
  }
}

TEST_CASE("snapshot file: a section table that is none is refused") {
  const Sample odd;
  odd.change([](Header& header) { header.section_table.size = 3 * 64 - 1; });
  CHECK(odd.problem() == "section table: has 191 bytes");

  const Sample twice;
  twice.change_entry(1, [](SectionEntry& entry) { entry.index = 0; });
  CHECK(twice.problem() == "section first 0: is there twice");

  const Sample nameless;
  nameless.change_entry(1, [](SectionEntry& entry) { entry.tag = {}; });
  CHECK(nameless.problem() == "has a section whose name is none");

  // As many as there may be, and one more.
  const UniqueFd file = new_file();
  Content content;
  content.memory.offset = 512 * kPage;
  content.sections.assign(4096, {.tag = "many", .version = 1, .bytes = content.bytes[0]});
  REQUIRE(content.write(file.get()));
  CHECK(SnapshotFile::read(file.get()));
  content.sections.push_back(content.sections[0]);
  REQUIRE(content.write(file.get()));
  CHECK(SnapshotFile::read(file.get()).error().message() == "section table: has 262208 bytes");
}

/// A sample whose memory begins half a pebibyte further on: all in between is a hole.
struct HugeSample : Sample {
  static constexpr std::uint64_t kOffset = std::uint64_t{1} << 49;
  HugeSample() {
    change([](Header& header) { header.memory_offset = kOffset; });
    set_size(kOffset + kPlaces * kPage);
    CHECK(read());
  }
};

TEST_CASE("snapshot file: a size that a hole makes possible is refused before it is allocated") {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  const std::uint64_t most = HugeSample::kOffset - 16 * kPage;
  for (const Table& table : kTables) {
    const std::uint64_t limit = table.extent == &Header::section_table    ? 64 * kMiB
                                : table.extent == &Header::page_checksums ? 8 * kPlaces
                                                                          : 256 * kMiB;
    for (const std::uint64_t size : {limit + 1, most}) {
      CHECK(table_problem(HugeSample(), table, kPage, size) == named(table, kPage, size));
    }
  }
  // What has the size that it may have is read, and is not what its checksum is of.
  CHECK(table_problem(HugeSample(), kTables[1], kPage, 256 * kMiB) ==
        "page table: is damaged: its checksum is another one");
  CHECK(table_problem(HugeSample(), kTables[2], kPage, 8 * kPlaces) ==
        "page checksums: is damaged: its checksum is another one");

  constexpr const char* kTooMany = "section table: has more bytes of sections than any machine";
  for (const std::uint64_t size : {64 * kMiB + 1, most}) {
    const HugeSample one;
    one.change_entry(0, [size](SectionEntry& entry) { entry.extent.size = size; });
    CHECK(one.problem() == kTooMany);
  }
  // Together they are too many; each of them is read and right.
  const HugeSample all;
  const Extent zeros = {.offset = 512 * kPage,
                        .size = 30 * kMiB,
                        .checksum = all.checksum_of(512 * kPage, 30 * kMiB)};
  all.change_entry(0, [&zeros](SectionEntry& entry) { entry.extent = zeros; });
  all.change_entry(1, [&zeros](SectionEntry& entry) { entry.extent = zeros; });
  CHECK(all.read());
  all.change_entry(2, [&zeros](SectionEntry& entry) { entry.extent = zeros; });
  CHECK(all.problem() == kTooMany);
}

/// Flips each bit of [begin, end), one in `step`, and has `part` named for each.
void check_flips(const Sample& sample, std::uint64_t begin, std::uint64_t end, unsigned step,
                 const std::string& part) {
  REQUIRE(begin < end);
  for (std::uint64_t bit = begin * 8; bit < end * 8; bit += step) {
    const auto was = sample.get<std::uint8_t>(bit / 8);
    sample.put(bit / 8, static_cast<std::uint8_t>(was ^ 1U << bit % 8));
    if (sample.problem() != part + ": is damaged: its checksum is another one") {
      FAIL_CHECK("bit " << bit << ": " << sample.problem());
    }
    sample.put(bit / 8, was);
  }
}

TEST_CASE("snapshot file: damage is told by the part that has it") {
  const Sample sample;
  const Header header = sample.header();
  check_flips(sample, 0xc, 0xc8, 1, "header");
  check_flips(sample, 0xc8, 0xff8, 37, "header");
  check_flips(sample, 0xff8, 0x1000, 1, "header");
  for (const std::uint64_t byte : {0U, 7U}) {
    sample.put(byte, std::uint8_t{'?'});
    CHECK(sample.problem() == "is no snapshot of vireo's");
    sample.put(0, header);
  }
  const std::uint64_t table = header.section_table.offset;
  check_flips(sample, table, table + header.section_table.size, 1, "section table");
  const auto first = sample.get<SectionEntry>(table).extent;
  check_flips(sample, first.offset, first.offset + first.size, 1, "section first 0");
  const auto third = sample.get<SectionEntry>(sample.entry_at(2)).extent;
  check_flips(sample, third.offset, third.offset + third.size, 101,
              "section a-tag-of-16-char 4294967295");
  const Extent& runs = header.page_table;
  check_flips(sample, runs.offset, runs.offset + runs.size, 1, "page table");
  const Extent& checksums = header.page_checksums;
  check_flips(sample, checksums.offset, checksums.offset + checksums.size, 1, "page checksums");
  CHECK(sample.read());

  Content content;
  content.facts.compressed = true;
  content.frame_table = some_bytes(20, 6);
  REQUIRE(content.write(sample.fd()));
  const Extent frames = sample.header().frame_table;
  check_flips(sample, frames.offset, frames.offset + frames.size, 1, "frame table");
}

TEST_CASE("snapshot file: what has no room, or cannot be written, is an error") {
  const UniqueFd file = new_file();
  Content content;
  content.memory.offset = 2 * kPage;
  const Result<> narrow = content.write(file.get());
  REQUIRE_FALSE(narrow);
  CHECK(narrow.error().code() == ErrorCode::kInternal);
  CHECK(narrow.error().message() == "the snapshot's sections have no room before its memory");
  CHECK(regular_file_size(file.get()).value() == 0);

  const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  const UniqueFd read_only(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  CHECK(Content().write(full.get()).error().errnum() == ENOSPC);
  CHECK(Content().write(read_only.get()).error().errnum() == EBADF);
}

TEST_CASE("snapshot file: in front of memory is room for as many runs as pages") {
  for (const std::uint64_t pages : {1U, 170U, 171U, 5000U}) {
    const std::uint64_t offset = snapshot_memory_offset(pages);
    CHECK(offset % kPage == 0);
    const UniqueFd file = new_file();
    Content content;
    content.facts.pages = pages;
    content.memory = {.offset = offset, .size = pages * kPage, .pages = pages};
    content.page_table = some_bytes(16 * pages, 7);
    content.page_checksums = some_bytes(8 * pages, 8);
    content.bytes[0].resize(std::size_t{4} << 20);
    content.sections = {{.tag = "large", .version = 1, .bytes = content.bytes[0]}};
    content.sections[0].bytes = content.sections[0].bytes.first((std::size_t{4} << 20) - 64);
    REQUIRE(content.write(file.get()));
    CHECK(SnapshotFile::read(file.get()));
  }
}

TEST_CASE("snapshot file: memory may begin where the other parts end, and not before") {
  for (const std::size_t size : {0U, 1U, 8U, 3000U, 4096U, 70000U}) {
    Content content;
    content.page_checksums = some_bytes(size / 8 * 8, 1);
    content.frame_table = some_bytes(size, 2);
    const std::uint64_t places = content.page_checksums.size() / 8;
    const std::uint64_t offset =
        snapshot_memory_offset(content.sections, content.page_table.size(),
                               content.page_checksums.size(), content.frame_table.size());
    CHECK(offset % kPage == 0);
    content.memory = {.offset = offset, .size = places * kPage, .pages = places};
    const UniqueFd file = new_file();
    REQUIRE(content.write(file.get()));
    CHECK(SnapshotFile::read(file.get()));
    content.memory.offset -= kPage;
    CHECK(content.write(file.get()).error().code() == ErrorCode::kInternal);
  }
}

}  // namespace
}  // namespace vireo
