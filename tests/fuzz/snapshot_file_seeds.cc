// SPDX-License-Identifier: Apache-2.0
// usage: snapshot_file_seeds DIRECTORY: writes the seeds of the fuzz target snapshot_file.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <zstd.h>

#include "src/base/checksum.h"
#include "src/base/fd.h"
#include "src/memory/frame_table.h"
#include "src/memory/page_table.h"
#include "src/snapshot/snapshot_file.h"

namespace {

using namespace vireo;

constexpr std::uint64_t kMemory = 2 * vsnap::kPageSize;
/// What of a file is left out of a short seed (see snapshot_file.cc).
constexpr std::size_t kReserved = offsetof(vsnap::Header, reserved);

struct Seed {
  SnapshotFacts facts;
  std::vector<SnapshotSection> sections;
  std::vector<PageRun> runs;
  std::uint64_t places = 0;
  std::vector<std::byte> frames;
  std::vector<std::byte> memory;  // of a compressed one
};

std::vector<std::byte> file_of(const Seed& seed) {
  const UniqueFd fd(::memfd_create("seed", MFD_CLOEXEC));
  const std::vector<std::byte> page(vsnap::kPageSize);
  const bool memory_file = seed.facts.memory_file;
  std::vector<std::uint64_t> checksums(seed.places, checksum(page));
  const std::vector<std::byte> table = encode_page_table(seed.runs);
  const std::uint64_t size =
      seed.facts.compressed ? seed.memory.size() : seed.places * vsnap::kPageSize;
  CHECK(write_snapshot_file(fd.get(), seed.facts, seed.sections,
                            {.page_table = table,
                             .page_checksums = std::as_bytes(std::span(checksums)),
                             .frame_table = seed.frames},
                            {.offset = kMemory, .size = size, .pages = seed.places}));
  std::vector<std::byte> file(kMemory + (memory_file ? 0 : size));
  CHECK(read_full_at(fd.get(), file, 0));
  std::ranges::copy(seed.memory, file.begin() + kMemory);
  return file;
}

/// The beginning of a file up to its last byte that is not zero, without the header's reserved
/// ones.
std::vector<std::byte> short_of(std::vector<std::byte> file) {
  file.erase(file.begin() + kReserved, file.begin() + vsnap::kPageSize);
  while (file.back() == std::byte{0}) {
    file.pop_back();
  }
  return file;
}

/// Pages of zeros, so many in a frame.
Seed compressed(std::uint32_t places, std::uint32_t of_frame) {
  Seed seed = {.facts = {.compressed = true, .pages = places}, .places = places};
  FrameTable table = {.places = of_frame};
  for (std::uint32_t first = 0; first < places; first += of_frame) {
    const std::vector<std::byte> pages(std::min(of_frame, places - first) * vsnap::kPageSize);
    std::vector<std::byte> frame(ZSTD_compressBound(pages.size()));
    frame.resize(ZSTD_compress(frame.data(), frame.size(), pages.data(), pages.size(), 1));
    table.frames.push_back(
        {.offset = seed.memory.size(), .size = frame.size(), .checksum = checksum(frame)});
    seed.memory.insert(seed.memory.end(), frame.begin(), frame.end());
  }
  seed.frames = encode_frame_table(table);
  return seed;
}

PageRun data(std::uint32_t count, std::uint64_t position) {
  return {.kind = PageKind::kData, .count = count, .position = position};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: snapshot_file_seeds DIRECTORY\n", stderr);
    return 64;
  }
  const std::string directory = argv[1];
  const auto write = [&](const std::string& name, unsigned char what,
                         const std::vector<std::byte>& content) {
    std::ofstream(directory + "/" + name, std::ios::binary)
        .put(static_cast<char>(what))
        .write(reinterpret_cast<const char*>(content.data()),
               static_cast<std::streamsize>(content.size()));
  };
  const std::vector<std::byte> bytes(21, std::byte{0x5a});
  const PageRun zeros = {.kind = PageKind::kZero, .count = 3};
  const PageRun far = {.kind = PageKind::kZero, .count = 600};
  const Seed whole = {
      .facts = {.uuid = {1, 2, 3}, .created_ns = 4, .pages = 2},
      .sections = {{.tag = "machine", .version = 1, .bytes = bytes},
                   {.tag = "x86-vcpu", .index = 1, .version = 2}},
      .runs = {{.kind = PageKind::kZero, .count = 1}, {.kind = PageKind::kData, .count = 1}},
      .places = 1};
  write("whole", 0, file_of(whole));
  write("whole-mended", 1, file_of(whole));
  write("short", 7, short_of(file_of(whole)));

  // Gaps whose places are nobody's, and another page's.
  const Seed gaps = {
      .facts = {.pages = 1 + 3 + 2 + 600 + 2 + 3 + 1 + 600},
      .sections = whole.sections,
      .runs = {data(1, 0), zeros, data(2, 4), far, data(2, 6), zeros, data(1, 2), far},
      .places = 10};
  write("gaps", 7, short_of(file_of(gaps)));
  write("backwards", 7,
        short_of(file_of({.facts = {.pages = 7},
                          .runs = {data(1, 6), data(1, 5), data(2, 3), data(1, 2), data(2, 0)},
                          .places = 7})));
  // One run in both regions of guest memory, and one beyond all places.
  write("across", 7, short_of(file_of({.facts = {.pages = 6}, .runs = {data(6, 0)}, .places = 6})));
  write("outside", 7,
        short_of(file_of({.facts = {.pages = 2}, .runs = {data(2, 5)}, .places = 6})));
  write("diff", 7,
        short_of(file_of({.facts = {.diff = true, .parent = {9}, .pages = 4},
                          .runs = {{.kind = PageKind::kAbsent, .count = 4}}})));
  Seed packed = compressed(9, 4);
  packed.runs = {data(9, 0)};
  write("compressed", 0, file_of(packed));
  write("compressed-short", 7, short_of(file_of(packed)));
  packed.runs = {data(3, 6), zeros, data(3, 0)};
  write("compressed-backwards", 7, short_of(file_of(packed)));
  packed.frames.pop_back();
  write("compressed-table", 7, short_of(file_of(packed)));
  // Each page at its own place, in another file.
  const Seed split = {.facts = {.memory_file = true, .pages = 5},
                      .sections = {{.tag = "memory-file", .version = 1, .bytes = bytes}},
                      .runs = {data(1, 0), zeros, data(1, 4)},
                      .places = 5};
  write("split", 0, file_of(split));
  write("split-mended", 1, file_of(split));
  write("twice", 7,
        short_of(file_of({.facts = {.pages = 3},
                          .sections = {{.tag = "serial", .version = 1, .bytes = bytes},
                                       {.tag = "serial", .version = 1, .bytes = bytes}},
                          .runs = {zeros}})));
  return 0;
}
