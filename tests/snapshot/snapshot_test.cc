// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot/snapshot.h"

#include <algorithm>
#include <string>

#include "tests/support/catch.h"

namespace vireo {
namespace {

struct Part {
  std::uint16_t number = 0;
  bool flag = false;
  void fields(auto& ar) { ar(number, flag); }
  bool operator==(const Part&) const = default;
};

/// A field of every kind.
struct Whole {
  static constexpr std::string_view kTag = "whole";
  static constexpr std::uint32_t kVersion = 2;
  static constexpr std::size_t kPartsMax = 3;

  std::uint8_t u8 = 0;
  std::uint16_t u16 = 0;
  std::uint32_t u32 = 0;
  std::uint64_t u64 = 0;
  bool flag = false;
  std::byte byte{0};
  GuestAddress address;
  std::array<std::byte, 2> fixed = {};
  Part part;
  std::vector<Part> parts;
  std::vector<std::byte> bytes;
  std::uint8_t since_2 = 7;

  void fields(auto& ar) {
    ar(u8, u16, u32, u64, flag, byte, address, fixed, part);
    ar.list(parts, kPartsMax);
    ar.list(bytes, 8);
    if (ar.version() >= 2) {
      ar(since_2);
    }
  }
  bool operator==(const Whole&) const = default;
};

Whole sample() {
  return {.u8 = 0x11,
          .u16 = 0x2221,
          .u32 = 0x34333231,
          .u64 = 0x4847464544434241,
          .flag = true,
          .byte = std::byte{0x51},
          .address = GuestAddress(0x6867666564636261),
          .fixed = {std::byte{0x71}, std::byte{0x72}},
          .part = {.number = 0x8281, .flag = true},
          .parts = {{.number = 0x9291, .flag = false}, {.number = 0xa2a1, .flag = true}},
          .bytes = {std::byte{0xb1}, std::byte{0xb2}, std::byte{0xb3}},
          .since_2 = 0xc1};
}

/// The bytes of sample(), as a program that shares no code with us would read them.
std::vector<std::byte> sample_bytes() {
  std::vector<std::byte> bytes;
  for (const int byte : {0x11, 0x21, 0x22, 0x31, 0x32, 0x33, 0x34, 0x41, 0x42, 0x43, 0x44, 0x45,
                         0x46, 0x47, 0x48, 0x01, 0x51, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67,
                         0x68, 0x71, 0x72, 0x81, 0x82, 0x01, 0x02, 0x00, 0x00, 0x00, 0x91, 0x92,
                         0x00, 0xa1, 0xa2, 0x01, 0x03, 0x00, 0x00, 0x00, 0xb1, 0xb2, 0xb3, 0xc1}) {
    bytes.push_back(static_cast<std::byte>(byte));
  }
  return bytes;
}
constexpr std::size_t kFlagAt = 15;
constexpr std::size_t kPartsAt = 30;
constexpr std::size_t kBytesAt = 40;

Result<Whole> read(std::span<const std::byte> bytes, std::uint32_t version = Whole::kVersion) {
  const SnapshotSection section = {.tag = "whole", .version = version, .bytes = bytes};
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(std::span(&section, 1)));
  return reader.take<Whole>(0);
}

std::string problem_of(std::span<const std::byte> bytes, std::uint32_t version = Whole::kVersion) {
  const Result<Whole> whole = read(bytes, version);
  REQUIRE_FALSE(whole);
  CHECK(whole.error().code() == ErrorCode::kBadInput);
  CHECK(whole.error().message().starts_with("section whole 0: "));
  return whole.error().message().substr(17);
}

TEST_CASE("snapshot: fields lie one behind the other, little-endian, and come back") {
  SnapshotWriter writer;
  writer.add(0, sample());
  writer.add(7, Whole{});
  REQUIRE(writer.sections().size() == 2);
  CHECK(writer.sections()[0].tag == "whole");
  CHECK(writer.sections()[0].version == 2);
  CHECK(std::ranges::equal(writer.sections()[0].bytes, sample_bytes()));
  CHECK(writer.sections()[1].index == 7);

  Result<SnapshotReader> reader = SnapshotReader::create(writer.sections());
  REQUIRE(reader);
  const Result<Whole> first = reader->take<Whole>(0);
  REQUIRE(first);
  CHECK(*first == sample());
  const Result<> early = reader->finish();
  REQUIRE_FALSE(early);
  CHECK(early.error().message() == "section whole 7: belongs to nothing that is here");
  const Result<Whole> other = reader->take<Whole>(7);
  REQUIRE(other);
  CHECK(*other == Whole{});
  CHECK(reader->finish());
}

TEST_CASE("snapshot: a section is read to its end, and not beyond") {
  std::vector<std::byte> bytes = sample_bytes();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    INFO(size);
    CHECK(problem_of(std::span(bytes).first(size)) == "ends too early");
  }
  bytes.resize(bytes.size() + 3);
  CHECK(problem_of(bytes) == "has 3 bytes too many");
}

TEST_CASE("snapshot: what is no truth value and no list is refused") {
  std::vector<std::byte> bytes = sample_bytes();
  bytes[kFlagAt] = std::byte{2};
  CHECK(problem_of(bytes) == "has 2 where 0 or 1 stands");

  bytes = sample_bytes();
  bytes[kPartsAt] = std::byte{4};
  CHECK(problem_of(bytes) == "has a list of 4 entries, and may have 3");
  bytes[kPartsAt] = std::byte{2};
  bytes[kPartsAt + 3] = std::byte{0xff};
  CHECK(problem_of(bytes) == "has a list of 4278190082 entries, and may have 3");

  bytes = sample_bytes();
  bytes[kBytesAt] = std::byte{8};
  CHECK(problem_of(bytes) == "ends too early");
}

TEST_CASE("snapshot: older versions are read, others refused by name") {
  std::vector<std::byte> bytes = sample_bytes();
  CHECK(problem_of(bytes, 3) == "is of version 3; this vireo knows versions up to 2");
  CHECK(problem_of(bytes, 0) == "is of version 0; this vireo knows versions up to 2");
  CHECK(problem_of(bytes, 1) == "has 1 bytes too many");
  bytes.pop_back();
  const Result<Whole> older = read(bytes, 1);
  REQUIRE(older);
  Whole wanted = sample();
  wanted.since_2 = 7;
  CHECK(*older == wanted);
}

TEST_CASE("snapshot: a table that names no sections, or one twice") {
  const auto problem = [](std::span<const SnapshotSection> sections) {
    const Result<SnapshotReader> reader = SnapshotReader::create(sections);
    REQUIRE_FALSE(reader);
    return reader.error().message();
  };
  const SnapshotSection one = {.tag = "whole", .index = 3, .version = 2};
  CHECK(problem(std::vector{one, one}) == "section whole 3: is there twice");
  SnapshotSection other = one;
  for (const std::string_view tag : {"", "Whole", "a\x1b[2J", "abcdefghijklmnopq"}) {
    other.tag = tag;
    CHECK(problem(std::vector{one, other}) == "has a section whose name is none");
  }
  CHECK(problem(std::vector(5000, one)) == "has 5000 sections, and may have 4096");

  Result<SnapshotReader> reader = SnapshotReader::create(std::span(&one, 1));
  REQUIRE(reader);
  const Result<Whole> missing = reader->take<Whole>(2);
  REQUIRE_FALSE(missing);
  CHECK(missing.error().message() == "section whole 2: is missing");
}

}  // namespace
}  // namespace vireo
