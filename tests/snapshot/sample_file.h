// SPDX-License-Identifier: Apache-2.0
// Snapshot files without a name, for a test to look at and to spoil.
#pragma once

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "src/base/checksum.h"
#include "src/base/fd.h"
#include "src/snapshot/snapshot_file.h"
#include "tests/support/catch.h"

namespace vireo {

inline constexpr std::uint64_t kPage = vsnap::kPageSize;
inline constexpr std::uint64_t kMemory = 4 * kPage;
inline constexpr std::uint64_t kPlaces = 3;
inline constexpr std::uint64_t kSize = kMemory + kPlaces * kPage;

inline std::vector<std::byte> some_bytes(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  std::ranges::generate(bytes, [&random] { return static_cast<std::byte>(random()); });
  return bytes;
}

inline UniqueFd new_file() {
  UniqueFd file(::memfd_create("snapshot", MFD_CLOEXEC));
  REQUIRE(file);
  return file;
}

/// What is written: facts that are all different, sections of several lengths, tables.
struct Content {
  SnapshotFacts facts = {.architecture = 62,
                         .uuid = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
                         .created_ns = 0x1122334455667788,
                         .pages = 5};
  std::array<std::vector<std::byte>, 3> bytes = {some_bytes(100, 1), {}, some_bytes(5001, 2)};
  std::vector<SnapshotSection> sections = {
      {.tag = "first", .index = 0, .version = 1, .bytes = bytes[0]},
      {.tag = "first", .index = 7, .version = 2, .bytes = bytes[1]},
      {.tag = "a-tag-of-16-char", .index = 0xffffffff, .version = 3, .bytes = bytes[2]}};
  std::vector<std::byte> page_table = some_bytes(32, 3);
  std::vector<std::byte> page_checksums = some_bytes(8 * kPlaces, 4);
  std::vector<std::byte> frame_table;
  MemoryPlace memory = {.offset = kMemory, .size = kPlaces * kPage, .pages = kPlaces};

  Result<> write(int fd) const {
    return write_snapshot_file(
        fd, facts, sections,
        {.page_table = page_table, .page_checksums = page_checksums, .frame_table = frame_table},
        memory);
  }
};

/// A good file, for a test to spoil.
class Sample {
 public:
  Sample() { REQUIRE(Content().write(file_.get())); }

  int fd() const { return file_.get(); }
  template <typename T>
  T get(std::uint64_t offset) const {
    T value;
    REQUIRE(::pread(fd(), &value, sizeof(value), static_cast<off_t>(offset)) == sizeof(value));
    return value;
  }
  template <typename T>
  void put(std::uint64_t offset, const T& value) const {
    REQUIRE(::pwrite(fd(), &value, sizeof(value), static_cast<off_t>(offset)) == sizeof(value));
  }
  void set_size(std::uint64_t size) const {
    REQUIRE(::ftruncate(fd(), static_cast<off_t>(size)) == 0);
  }
  std::uint64_t checksum_of(std::uint64_t offset, std::uint64_t size) const {
    std::vector<std::byte> bytes(size);
    REQUIRE(read_full_at(fd(), bytes, offset));
    return checksum(bytes);
  }
  vsnap::Header header() const { return get<vsnap::Header>(0); }
  /// With the checksum that it should have.
  void put_header(vsnap::Header header) const {
    header.checksum = checksum(std::as_bytes(std::span(&header, 1)).first(0xff8));
    put(0, header);
  }
  /// Changes the header, and nothing that a checksum would tell.
  template <typename How>
  void change(const How& how) const {
    vsnap::Header header = this->header();
    how(header);
    put_header(header);
  }
  std::uint64_t entry_at(std::size_t number) const {
    return header().section_table.offset + number * sizeof(vsnap::SectionEntry);
  }
  template <typename How>
  void change_entry(std::size_t number, const How& how) const {
    auto entry = get<vsnap::SectionEntry>(entry_at(number));
    how(entry);
    put(entry_at(number), entry);
    change([this](vsnap::Header& header) {
      header.section_table.checksum =
          checksum_of(header.section_table.offset, header.section_table.size);
    });
  }
  /// All of it: the file, and the sections by their names.
  Result<> read() const {
    TRY_ASSIGN(const SnapshotFile file, SnapshotFile::read(fd()));
    TRY(file.read_page_checksums(fd()));
    TRY(file.read_frame_table(fd()));
    TRY(SnapshotReader::create(file.sections()));
    return {};
  }
  std::string problem() const {
    const Result<> result = read();
    REQUIRE_FALSE(result);
    CHECK(result.error().code() == ErrorCode::kBadInput);
    return result.error().message();
  }

 private:
  UniqueFd file_ = new_file();
};

}  // namespace vireo
