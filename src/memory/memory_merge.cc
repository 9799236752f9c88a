// SPDX-License-Identifier: Apache-2.0
#include "src/memory/memory_merge.h"

#include <algorithm>
#include <cerrno>
#include <utility>

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
  if (Result<> read = read_full_at(layer.file, bytes, layer.offset + place * kImagePage); !read) {
    return std::unexpected(std::move(read).error().context(layer.path));
  }
  for (std::uint64_t i = 0; i < bytes.size() / kImagePage; ++i) {
    if (checksum(bytes.subspan(i * kImagePage, kImagePage)) != layer.checksums[place + i]) {
      return fail(ErrorCode::kBadInput,
                  fmt::format("{}: the page at {}: is damaged: its checksum is another one",
                              layer.path, layer.offset + (place + i) * kImagePage));
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

namespace {

/// A page of a layer, and those behind it.
class Cursor {
 public:
  explicit Cursor(std::span<const PageRun> runs) : runs_(runs) {}

  PageKind kind() const { return runs_.front().kind; }
  std::uint64_t place() const { return runs_.front().position + done_; }
  /// So many pages follow in one run.
  std::uint64_t left() const { return runs_.front().count - done_; }
  void advance(std::uint64_t count) {
    done_ += count;
    if (done_ == runs_.front().count) {
      runs_ = runs_.subspan(1);
      done_ = 0;
    }
  }

 private:
  std::span<const PageRun> runs_;
  std::uint64_t done_ = 0;  // of the first
};

}  // namespace

MergedMemory plan_merge(std::span<const MemoryLayer> layers, std::uint64_t pages) {
  std::vector<Cursor> cursors;
  for (const MemoryLayer& layer : layers) {
    cursors.emplace_back(layer.runs);
  }
  MergedMemory merged;
  std::uint64_t zeros = kSqueezedPages;  // before this page
  std::uint64_t count = 0;
  for (std::uint64_t page = 0; page < pages; page += count) {
    count = std::ranges::min_element(cursors, {}, &Cursor::left)->left();
    std::size_t layer = cursors.size() - 1;
    while (layer > 0 && cursors[layer].kind() == PageKind::kAbsent) {
      --layer;
    }
    PageRun run = {.kind = PageKind::kZero, .count = static_cast<std::uint32_t>(count)};
    if (cursors[layer].kind() == PageKind::kData) {
      // Few zero pages between data keep their places, for one mapping of them all.
      merged.places += zeros < kSqueezedPages ? zeros : 0;
      zeros = 0;
      run.kind = PageKind::kData;
      run.position = merged.places;
      merged.sources.push_back({.layer = layer,
                                .place = cursors[layer].place(),
                                .count = count,
                                .merged_place = merged.places});
      merged.places += count;
    } else {
      zeros += count;
    }
    add_run(merged.runs, run);
    for (Cursor& cursor : cursors) {
      cursor.advance(count);
    }
  }
  return merged;
}

Result<std::vector<std::uint64_t>> write_merged(const MergedMemory& merged,
                                                std::span<const MemoryLayer> layers, int file,
                                                std::uint64_t offset, const PagesDone& done) {
  std::vector<std::uint64_t> checksums(merged.places);
  std::vector<std::byte> buffer(kPagesAtOnce * kImagePage);
  for (const MergedMemory::Source& source : merged.sources) {
    const MemoryLayer& layer = layers[source.layer];
    for (std::uint64_t first = 0; first < source.count; first += kPagesAtOnce) {
      const std::uint64_t count = std::min(kPagesAtOnce, source.count - first);
      const std::uint64_t to = source.merged_place + first;
      const std::span bytes = std::span(buffer).first(count * kImagePage);
      TRY(read_pages(layer, source.place + first, bytes));
      TRY(write_pages(file, bytes, offset + to * kImagePage));
      std::ranges::copy(std::span(layer.checksums).subspan(source.place + first, count),
                        std::span(checksums).subspan(to).begin());
      done(count);
    }
  }
  return checksums;
}

}  // namespace vireo
