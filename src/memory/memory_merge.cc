// SPDX-License-Identifier: Apache-2.0
#include "src/memory/memory_merge.h"

#include <algorithm>
#include <cerrno>

#include <unistd.h>

#include <fmt/core.h>

#include "src/base/checksum.h"
#include "src/base/fd.h"

namespace vireo {

namespace {

/// One read or write.
constexpr std::uint64_t kPagesAtOnce = 256;
/// As memory_image.cc has it: so many zero pages take no place.
constexpr std::uint64_t kSqueezedPages = 512;

/// Reads pages from `place` on, and checks them.
Result<> read_pages(const MemoryLayer& layer, std::uint64_t place, std::span<std::byte> bytes) {
  TRY(read_full_at(layer.file, bytes, layer.offset + place * kImagePage));
  for (std::uint64_t i = 0; i < bytes.size() / kImagePage; ++i) {
    if (checksum(bytes.subspan(i * kImagePage, kImagePage)) != layer.checksums[place + i]) {
      return fail(ErrorCode::kBadInput,
                  fmt::format("the page at {}: is damaged: its checksum is another one",
                              layer.offset + (place + i) * kImagePage));
    }
  }
  return {};
}

Result<> write_pages(int file, std::span<const std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return fail_errno(written < 0 ? errno : EIO, "writing guest memory");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

}  // namespace

Result<> verify_memory(const MemoryLayer& layer, const PagesDone& done) {
  std::vector<std::byte> buffer(kPagesAtOnce * kImagePage);
  for (const PageRun& run : layer.runs) {
    if (run.kind != PageKind::kData) {
      continue;
    }
    for (std::uint64_t first = 0; first < run.count; first += kPagesAtOnce) {
      const std::uint64_t count = std::min(kPagesAtOnce, run.count - first);
      TRY(read_pages(layer, run.position + first, std::span(buffer).first(count * kImagePage)));
      done(count);
    }
  }
  return {};
}

MergedMemory plan_merge(std::span<const MemoryLayer> layers, std::uint64_t pages) {
  struct Page {
    PageKind kind = PageKind::kZero;
    MergedMemory::Source source;
  };
  std::vector<Page> all(pages);
  for (std::uint32_t layer = 0; layer < layers.size(); ++layer) {
    std::uint64_t page = 0;
    for (const PageRun& run : layers[layer].runs) {
      for (std::uint32_t i = 0; i < run.count; ++i, ++page) {
        if (run.kind != PageKind::kAbsent) {
          all[page] = {.kind = run.kind, .source = {.layer = layer, .place = run.position + i}};
        }
      }
    }
  }
  MergedMemory merged;
  std::uint64_t zeros = kSqueezedPages;  // before this page
  for (const Page& page : all) {
    if (page.kind != PageKind::kData) {
      add_page(merged.runs, PageKind::kZero, 0);
      ++zeros;
      continue;
    }
    // Few zero pages between data keep their places, for one mapping of them all.
    merged.places += zeros < kSqueezedPages ? zeros : 0;
    zeros = 0;
    add_page(merged.runs, PageKind::kData, merged.places++);
    merged.sources.push_back(page.source);
  }
  return merged;
}

Result<std::vector<std::uint64_t>> write_merged(const MergedMemory& merged,
                                                std::span<const MemoryLayer> layers, int file,
                                                std::uint64_t offset, const PagesDone& done) {
  std::vector<std::uint64_t> checksums(merged.places);
  std::vector<std::byte> buffer(kPagesAtOnce * kImagePage);
  std::size_t next = 0;  // of the sources
  for (const PageRun& run : merged.runs) {
    if (run.kind != PageKind::kData) {
      continue;
    }
    for (std::uint64_t first = 0; first < run.count;) {
      const MergedMemory::Source& source = merged.sources[next];
      const MemoryLayer& layer = layers[source.layer];
      std::uint64_t count = 1;
      while (count < kPagesAtOnce && first + count < run.count &&
             merged.sources[next + count].layer == source.layer &&
             merged.sources[next + count].place == source.place + count) {
        ++count;
      }
      const std::span bytes = std::span(buffer).first(count * kImagePage);
      TRY(read_pages(layer, source.place, bytes));
      TRY(write_pages(file, bytes, offset + (run.position + first) * kImagePage));
      std::ranges::copy(std::span(layer.checksums).subspan(source.place, count),
                        std::span(checksums).subspan(run.position + first).begin());
      done(count);
      next += count;
      first += count;
    }
  }
  return checksums;
}

}  // namespace vireo
