// SPDX-License-Identifier: Apache-2.0
#include "src/memory/memory_layer.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <string>

#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include "src/base/checksum.h"
#include "src/base/fd.h"
#include "src/memory/memory_image.h"
#include "src/memory/memory_merge.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kPages = 2500;
constexpr std::uint64_t kOffset = 5 * kImagePage;
using Bytes = std::vector<std::byte>;

UniqueFd new_file() {
  UniqueFd file(::memfd_create("layer", MFD_CLOEXEC));
  REQUIRE(file);
  return file;
}

void put(int fd, std::span<const std::byte> bytes, std::uint64_t offset) {
  REQUIRE(::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)) ==
          static_cast<ssize_t>(bytes.size()));
}

/// What a page of this number holds: half of it is hard to compress.
Bytes page_of(unsigned value) {
  Bytes bytes(kImagePage, static_cast<std::byte>(value));
  std::mt19937 random(value);
  std::generate(bytes.begin(), bytes.begin() + kImagePage / 2,
                [&] { return static_cast<std::byte>(random()); });
  return bytes;
}

/// Pages by their numbers: what each holds, 0 for zeros. Those that are not there are absent.
using Content = std::map<std::uint64_t, unsigned>;

/// A plain image with places in any order.
struct Image {
  Image(const Content& content, unsigned seed) {
    std::vector<std::uint64_t> places;
    for (const auto& [page, value] : content) {
      if (value != 0) {
        places.push_back(places.size());
      }
    }
    std::mt19937 random(seed);
    // Pieces of 40 stay together, so that there are runs.
    for (std::size_t at = 0; at + 80 <= places.size(); at += 40) {
      if (random() % 2 == 0) {
        std::rotate(places.begin() + static_cast<std::ptrdiff_t>(at),
                    places.begin() + static_cast<std::ptrdiff_t>(at + 40),
                    places.begin() + static_cast<std::ptrdiff_t>(at + 80));
      }
    }
    layer = {.file = file.get(), .offset = kOffset};
    layer.checksums.resize(places.size());
    auto next = places.begin();
    for (std::uint64_t page = 0; page < kPages; ++page) {
      const auto found = content.find(page);
      if (found == content.end()) {
        add_run(layer.runs, {.kind = PageKind::kAbsent, .count = 1});
      } else if (found->second == 0) {
        add_run(layer.runs, {.kind = PageKind::kZero, .count = 1});
      } else {
        const Bytes bytes = page_of(found->second);
        put(file.get(), bytes, kOffset + *next * kImagePage);
        layer.checksums[*next] = checksum(bytes);
        add_run(layer.runs, {.kind = PageKind::kData, .count = 1, .position = *next++});
      }
    }
  }

  UniqueFd file = new_file();
  MemoryLayer layer;
};

Content random_content(unsigned seed, bool full) {
  std::mt19937 random(seed);
  Content content;
  for (std::uint64_t page = 0; page < kPages;) {
    const std::uint64_t count = std::min<std::uint64_t>(1 + random() % 90, kPages - page);
    const std::uint64_t kind = random() % (full ? 2 : 4);
    for (std::uint64_t i = 0; i < count && kind < 3; ++i) {
      content[page + i] = kind == 0 ? 0 : static_cast<unsigned>(1 + random() % 1000);
    }
    page += count;
  }
  return content;
}

std::unique_ptr<GuestMemory> memory_with(const MemoryLayer& layer) {
  const std::array ranges = {
      *GuestRange::create(GuestAddress(0), 1003 * kImagePage),
      *GuestRange::create(GuestAddress(std::uint64_t{4} << 30), (kPages - 1003) * kImagePage)};
  auto memory = GuestMemory::create(ranges, {});
  REQUIRE(memory);
  const Result<> read = read_memory_image(**memory, layer);
  INFO((read ? "" : read.error().message()));
  REQUIRE(read);
  return std::move(*memory);
}

void check_holds(const MemoryLayer& layer, const Content& content) {
  const auto memory = memory_with(layer);
  const std::span<const GuestMemory::Region> regions = memory->regions();
  for (std::uint64_t page = 0; page < kPages; ++page) {
    const std::byte* const host = page < 1003 ? &regions[0].host[page * kImagePage]
                                              : &regions[1].host[(page - 1003) * kImagePage];
    const auto found = content.find(page);
    const bool zero = found == content.end() || found->second == 0;
    const Bytes wanted = zero ? Bytes(kImagePage) : page_of(found->second);
    REQUIRE(std::memcmp(host, wanted.data(), kImagePage) == 0);
  }
}

/// The layer that comes of layers, compressed.
struct Compressed {
  explicit Compressed(std::span<const MemoryLayer> layers) {
    const MergedMemory merged = plan_merge(layers, kPages);
    std::uint64_t pages = 0;
    auto written = write_compressed(merged, layers, file.get(), kOffset,
                                    [&](std::uint64_t count) { pages += count; });
    REQUIRE(written);
    std::uint64_t wanted = 0;
    for (const MergedMemory::Source& source : merged.sources) {
      wanted += source.count;
    }
    CHECK(pages == wanted);
    size = written->size;
    const auto frames =
        decode_frame_table(encode_frame_table(written->frames), merged.places, size);
    REQUIRE(frames);
    CHECK(*frames == written->frames);
    CHECK(encode_frame_table(*frames).size() == frame_table_size(merged.places));
    layer = {.file = file.get(),
             .offset = kOffset,
             .runs = merged.runs,
             .checksums = written->checksums,
             .frames = *frames};
  }

  UniqueFd file = new_file();
  std::uint64_t size = 0;
  MemoryLayer layer;
};

TEST_CASE("memory layer: diffs folded into their base are the last of each page, either way") {
  for (unsigned seed = 0; seed < 4; ++seed) {
    Content content = random_content(seed, true);
    std::vector<Image> images;
    images.emplace_back(content, seed);
    for (unsigned diff = 0; diff < 3; ++diff) {
      const Content changed = random_content(10 * seed + diff, false);
      images.emplace_back(changed, diff);
      for (const auto& [page, value] : changed) {
        content[page] = value;
      }
    }
    std::vector<MemoryLayer> layers;
    for (const Image& image : images) {
      layers.push_back(image.layer);
    }
    const MergedMemory merged = plan_merge(layers, kPages);
    const UniqueFd file = new_file();
    std::atomic<std::uint64_t> pages = 0;
    const auto checksums = write_merged(merged, layers, file.get(), kOffset,
                                        [&](std::uint64_t count) { pages += count; });
    REQUIRE(checksums);
    const MemoryLayer plain = {
        .file = file.get(), .offset = kOffset, .runs = merged.runs, .checksums = *checksums};
    check_holds(plain, content);
    CHECK(verify_memory(plain, [](std::uint64_t) {}));
    // What was compressed can be a layer again.
    const Compressed compressed(layers);
    check_holds(compressed.layer, content);
    CHECK(compressed.size < merged.places * kImagePage * 3 / 4);
    std::uint64_t verified = 0;
    CHECK(verify_memory(compressed.layer, [&](std::uint64_t count) { verified += count; }));
    CHECK(verified == pages);
    check_holds(Compressed(std::span(&compressed.layer, 1)).layer, content);
  }
}

TEST_CASE("memory layer: neighbours in place may be of two layers") {
  Content content;
  for (std::uint64_t page = 0; page < kPages; ++page) {
    content[page] = 1;
  }
  const Image base(content, 1);
  const Image all(Content{{0, 2}, {1, 3}}, 1);
  MemoryLayer diff = all.layer;  // without its first page, whose place is there
  diff.runs = {{.kind = PageKind::kAbsent, .count = 1},
               {.kind = PageKind::kData, .count = 1, .position = 1},
               {.kind = PageKind::kAbsent, .count = kPages - 2}};
  content[1] = 3;
  const std::array layers = {base.layer, diff};
  check_holds(Compressed(layers).layer, content);
}

TEST_CASE("memory layer: a diff that is compressed keeps what is absent") {
  const Content content = random_content(3, false);
  const Image image(content, 1);
  const Compressed compressed(std::span(&image.layer, 1));
  std::uint64_t page = 0;
  for (const PageRun& run : compressed.layer.runs) {
    for (std::uint32_t i = 0; i < run.count; ++i, ++page) {
      const auto found = content.find(page);
      const PageKind kind = found == content.end() ? PageKind::kAbsent
                            : found->second == 0   ? PageKind::kZero
                                                   : PageKind::kData;
      REQUIRE(run.kind == kind);
    }
  }
  CHECK(page == kPages);
}

TEST_CASE("memory layer: a page can be had without those before it") {
  Content content;
  for (std::uint64_t page = 0; page < 3 * kFramePlaces + 5; ++page) {
    content[page] = static_cast<unsigned>(page + 1);
  }
  const Image image(content, 1);
  const Compressed compressed(std::span(&image.layer, 1));
  LayerReader reader(compressed.layer);
  std::mt19937 random(4);
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t place = random() % content.size();
    Bytes bytes((1 + random() % (content.size() - place)) * kImagePage);
    REQUIRE(reader.read(place, bytes));
    for (std::uint64_t page = 0; page < bytes.size() / kImagePage; ++page) {
      const Bytes wanted = page_of(static_cast<unsigned>(place + page + 1));
      REQUIRE(std::memcmp(&bytes[page * kImagePage], wanted.data(), kImagePage) == 0);
    }
  }
}

TEST_CASE("memory layer: damage to a compressed one is refused, and never more than that") {
  Content content = random_content(5, true);
  for (std::uint64_t page = 0; page < 5 * kFramePlaces; ++page) {
    content[page] = static_cast<unsigned>(page + 1);
  }
  const Image image(content, 1);
  Compressed compressed(std::span(&image.layer, 1));
  const auto refused = [&](std::string_view text) {
    const Result<> sound = verify_memory(compressed.layer, [](std::uint64_t) {});
    REQUIRE_FALSE(sound);
    CHECK(sound.error().code() == ErrorCode::kBadInput);
    INFO(sound.error().message());
    CHECK(sound.error().message().find(text) != std::string::npos);
  };
  FrameTable::Frame& frame = compressed.layer.frames->frames[2];
  Bytes packed(frame.size);
  REQUIRE(read_full_at(compressed.file.get(), packed, kOffset + frame.offset));
  std::mt19937 random(6);
  for (int i = 0; i < 300; ++i) {
    Bytes other = packed;
    other[random() % other.size()] ^= static_cast<std::byte>(1U << random() % 8);
    put(compressed.file.get(), other, kOffset + frame.offset);
    if (i == 0) {
      refused("frame 2 at " + std::to_string(kOffset + frame.offset) + ": is damaged");
    }
    // By somebody who mends the checksum: then it is the frame itself that is none, or its pages.
    const std::uint64_t before = frame.checksum;
    frame.checksum = checksum(other);
    LayerReader reader(compressed.layer);
    Bytes pages(kFramePlaces * kImagePage);
    const Result<> read = reader.read(2 * kFramePlaces, pages);
    if (read) {
      // A bit that means nothing to zstd.
      for (std::uint64_t page = 0; page < kFramePlaces; ++page) {
        CHECK(checksum(std::span(pages).subspan(page * kImagePage, kImagePage)) ==
              compressed.layer.checksums[2 * kFramePlaces + page]);
      }
    } else {
      CHECK(read.error().code() == ErrorCode::kBadInput);
    }
    frame.checksum = before;
  }
  put(compressed.file.get(), packed, kOffset + frame.offset);
  CHECK(verify_memory(compressed.layer, [](std::uint64_t) {}));

  // Frames of another length.
  for (const std::uint64_t pages : {kFramePlaces - 1, kFramePlaces + 1}) {
    const Bytes content_of_other(pages * kImagePage);
    Bytes other(ZSTD_compressBound(content_of_other.size()));
    other.resize(ZSTD_compress(other.data(), other.size(), content_of_other.data(),
                               content_of_other.size(), 1));
    REQUIRE(other.size() <= packed.size());
    put(compressed.file.get(), other, kOffset + frame.offset);
    const FrameTable::Frame before = frame;
    frame.size = other.size();
    frame.checksum = checksum(other);
    refused(pages < kFramePlaces ? "has too few pages" : "Destination buffer is too small");
    frame = before;
  }
  put(compressed.file.get(), packed, kOffset + frame.offset);
  REQUIRE(::ftruncate(compressed.file.get(), static_cast<off_t>(kOffset + compressed.size - 1)) ==
          0);
  refused("");
}

TEST_CASE("frame table: numbers are where FORMAT.md has them, and what cannot be is refused") {
  const FrameTable table = {
      .places = 4,
      .frames = {{.offset = 0x0102, .size = 3, .checksum = 0x1122334455667788}, {.offset = 7}}};
  const Bytes bytes = encode_frame_table(table);
  const std::array<unsigned char, 40> begin = {
      1,    0,    0,    0,    4,    0,    0,    0,   0, 0, 0, 0, 0, 0, 0, 0,  //
      2,    1,    0,    0,    0,    0,    0,    0,   3, 0, 0, 0, 0, 0, 0, 0,  //
      0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11};
  REQUIRE(bytes.size() == 64);
  CHECK(std::memcmp(bytes.data(), begin.data(), begin.size()) == 0);
  CHECK(decode_frame_table(bytes, 8, 0x105));
  CHECK(decode_frame_table(bytes, 5, 0x105));
  const auto refused = [&](std::uint64_t places, std::uint64_t size, std::size_t at,
                           unsigned char value, std::string_view text) {
    Bytes other = bytes;
    other[at] = std::byte{value};
    const auto decoded = decode_frame_table(other, places, size);
    REQUIRE_FALSE(decoded);
    CHECK(decoded.error().code() == ErrorCode::kBadInput);
    CHECK(decoded.error().message().find(text) != std::string::npos);
  };
  refused(4, 0x105, 0, 1, "where 1 frames are needed");
  refused(9, 0x105, 0, 1, "where 3 frames are needed");
  refused(8, 0x104, 0, 1, "frame 0 has 3 bytes at 258 of 260");
  refused(8, 0x101, 0, 1, "frame 0 has");
  refused(8, 0x105, 0, 2, "is of method 2");
  refused(8, 0x105, 0, 0, "is of method 0");
  refused(8, 0x105, 4, 0, "has frames of 0 places");
  refused(8, 0x105, 4, 65, "has frames of 65 places");
  refused(8, 0x105, 6, 1, "has frames of 65540 places");
  // More bytes than any frame of so many pages has: they would be allocated.
  refused(8, std::uint64_t{1} << 40, 27, 1, "frame 0 has 16777219 bytes");
  refused(8, 0x105, 31, 0xff, "frame 0 has");
  for (const std::size_t size : {0U, 15U, 16U, 40U, 63U}) {
    CHECK_FALSE(decode_frame_table(std::span(bytes).first(size), 8, 0x105));
  }
  CHECK(decode_frame_table(std::span(bytes).first(16), 0, 0));
}

TEST_CASE("memory layer: work on several threads is done once each, and ends with an error") {
  std::vector<std::atomic<int>> done(1000);
  CHECK(in_parallel(done.size(), [&]() -> PieceWork {
    return [&](std::size_t piece) -> Result<> {
      ++done[piece];
      return {};
    };
  }));
  CHECK(std::ranges::all_of(done, [](const std::atomic<int>& times) { return times == 1; }));
  CHECK(in_parallel(0, []() -> PieceWork {
    return [](std::size_t) -> Result<> { return fail_errno(EIO, "no piece"); };
  }));
  std::atomic<int> after = 0;
  const Result<> failed = in_parallel(100000, [&]() -> PieceWork {
    return [&](std::size_t piece) -> Result<> {
      ++after;
      return piece == 5 ? Result<>(fail_errno(EIO, "the fifth")) : Result<>();
    };
  });
  REQUIRE_FALSE(failed);
  CHECK(failed.error().message().starts_with("the fifth"));
  CHECK(after < 100000);
}

}  // namespace
}  // namespace vireo
