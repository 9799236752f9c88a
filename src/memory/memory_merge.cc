// SPDX-License-Identifier: Apache-2.0
#include "src/memory/memory_merge.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include <unistd.h>
#include <zstd.h>

#include <fmt/core.h>

#include "src/base/checksum.h"
#include "src/base/fd.h"

namespace vireo {

namespace {

/// What a thread reads and writes at a time.
constexpr std::uint64_t kPagesAtOnce = 256;
/// Frames that are compressed before they are written, one behind the other.
constexpr std::size_t kFramesAtOnce = 256;
/// As memory_image.cc has it: so many zero pages take no place.
constexpr std::uint64_t kSqueezedPages = 512;

Result<> write_bytes(int file, std::span<const std::byte> bytes, std::uint64_t offset) {
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

/// Brings the pages of places as a plan has them. One thread's.
class MergeReader {
 public:
  MergeReader(const MergedMemory& merged, std::span<const MemoryLayer> layers)
      : merged_(merged), layers_(layers) {
    for (const MemoryLayer& layer : layers) {
      readers_.emplace_back(layer);
    }
  }

  /// Reads those from `first` on into `bytes`, and their checksums; calls `visit(place, bytes)` for
  /// pages that lie side by side. What is nobody's stays as it is.
  template <typename Visit>
  Result<> read(std::uint64_t first, std::span<std::byte> bytes, std::span<std::uint64_t> checksums,
                Visit visit) {
    const std::uint64_t end = first + bytes.size() / kImagePage;
    auto source =
        std::ranges::upper_bound(merged_.sources, first, {}, &MergedMemory::Source::merged_place);
    source -= source == merged_.sources.begin() ? 0 : 1;
    for (; source != merged_.sources.end() && source->merged_place < end; ++source) {
      const std::uint64_t begin = std::max(first, source->merged_place);
      const std::uint64_t stop = std::min(end, source->merged_place + source->count);
      if (begin >= stop) {
        continue;
      }
      const std::uint64_t place = source->place + (begin - source->merged_place);
      const std::uint64_t count = stop - begin;
      const std::span part = bytes.subspan((begin - first) * kImagePage, count * kImagePage);
      TRY(readers_[source->layer].read(place, part));
      std::ranges::copy(std::span(layers_[source->layer].checksums).subspan(place, count),
                        checksums.subspan(begin).begin());
      TRY(visit(begin, part));
    }
    return {};
  }

 private:
  const MergedMemory& merged_;
  std::span<const MemoryLayer> layers_;
  std::vector<LayerReader> readers_;
};

/// Compresses frames. One thread's.
class FramePacker {
 public:
  FramePacker() : context_(ZSTD_createCCtx()), pages_(kBytes), packed_(ZSTD_compressBound(kBytes)) {
    if (!context_) {
      throw std::bad_alloc();
    }
  }

  /// Room for what is packed next.
  std::span<std::byte> pages(std::uint64_t count) {
    return std::span(pages_).first(count * kImagePage);
  }

  Result<std::vector<std::byte>> pack(std::span<const std::byte> bytes) {
    const std::size_t size = ZSTD_compressCCtx(context_.get(), packed_.data(), packed_.size(),
                                               bytes.data(), bytes.size(), ZSTD_CLEVEL_DEFAULT);
    if (ZSTD_isError(size) != 0) {
      return fail(ErrorCode::kSystem,
                  fmt::format("compressing guest memory: {}", ZSTD_getErrorName(size)));
    }
    const std::span packed = std::span(packed_).first(size);
    return std::vector<std::byte>(packed.begin(), packed.end());
  }

 private:
  static constexpr std::uint64_t kBytes = kFramePlaces * kImagePage;
  struct Free {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  };
  std::unique_ptr<ZSTD_CCtx, Free> context_;
  std::vector<std::byte> pages_;
  std::vector<std::byte> packed_;
};

}  // namespace

Result<> verify_memory(const MemoryLayer& layer, const PagesDone& done) {
  const std::vector<LayerPiece> pieces = pieces_of(layer);
  std::mutex mutex;  // of who is told
  return in_parallel(pieces.size(), [&]() -> PieceWork {
    const auto reader = std::make_shared<LayerReader>(layer);
    const auto buffer = std::make_shared<std::vector<std::byte>>();
    return [&, reader, buffer](std::size_t piece) -> Result<> {
      buffer->resize(pieces[piece].count * kImagePage);
      TRY(reader->read(pieces[piece].place, *buffer));
      const std::scoped_lock lock(mutex);
      done(pieces[piece].count);
      return {};
    };
  });
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

MergedMemory plan_merge(std::span<const MemoryLayer> layers, std::uint64_t pages, Places places) {
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
      merged.places = places == Places::kRaw ? page : merged.places;
      zeros = 0;
      run.kind = PageKind::kData;
      run.position = merged.places;
      merged.sources.push_back({.layer = layer,
                                .place = cursors[layer].place(),
                                .count = count,
                                .merged_place = merged.places});
      merged.places += count;
    } else if (cursors[layer].kind() == PageKind::kZero) {
      zeros += count;
    } else {
      run.kind = PageKind::kAbsent;
      zeros = kSqueezedPages;  // what is absent is mapped along with nothing
    }
    add_run(merged.runs, run);
    for (Cursor& cursor : cursors) {
      cursor.advance(count);
    }
  }
  merged.places = places == Places::kRaw ? pages : merged.places;
  return merged;
}

Result<std::vector<std::uint64_t>> write_merged(const MergedMemory& merged,
                                                std::span<const MemoryLayer> layers, int file,
                                                std::uint64_t offset, const PagesDone& done) {
  std::vector<std::uint64_t> checksums(merged.places);
  std::mutex mutex;  // of who is told
  const auto write_part = [&](std::uint64_t place, std::span<const std::byte> bytes) -> Result<> {
    TRY(write_bytes(file, bytes, offset + place * kImagePage));
    const std::scoped_lock lock(mutex);
    done(bytes.size() / kImagePage);
    return {};
  };
  TRY(in_parallel((merged.places + kPagesAtOnce - 1) / kPagesAtOnce, [&]() -> PieceWork {
    const auto reader = std::make_shared<MergeReader>(merged, layers);
    const auto buffer = std::make_shared<std::vector<std::byte>>(kPagesAtOnce * kImagePage);
    return [&, reader, buffer](std::size_t piece) {
      const std::uint64_t first = piece * kPagesAtOnce;
      const std::uint64_t count = std::min(kPagesAtOnce, merged.places - first);
      return reader->read(first, std::span(*buffer).first(count * kImagePage), checksums,
                          write_part);
    };
  }));
  return checksums;
}

Result<CompressedMemory> write_compressed(const MergedMemory& merged,
                                          std::span<const MemoryLayer> layers, int file,
                                          std::uint64_t offset, const PagesDone& done) {
  struct Packed {
    std::vector<std::byte> frame;
    std::uint64_t pages = 0;
  };
  const std::uint64_t places = merged.places;
  const std::size_t frames = (places + kFramePlaces - 1) / kFramePlaces;
  CompressedMemory memory = {.checksums = std::vector<std::uint64_t>(places),
                             .frames = {.places = kFramePlaces, .frames = {}}};
  std::vector<Packed> packed;
  for (std::size_t begin = 0; begin < frames; begin += kFramesAtOnce) {
    packed.assign(std::min(kFramesAtOnce, frames - begin), {});
    const auto make = [&]() -> PieceWork {
      const auto reader = std::make_shared<MergeReader>(merged, layers);
      const auto packer = std::make_shared<FramePacker>();
      return [&, begin, reader, packer](std::size_t i) -> Result<> {
        const std::uint64_t first = (begin + i) * kFramePlaces;
        const std::span bytes =
            packer->pages(std::min<std::uint64_t>(kFramePlaces, places - first));
        std::ranges::fill(bytes, std::byte{0});
        TRY(reader->read(first, bytes, memory.checksums,
                         [&](std::uint64_t, std::span<const std::byte> part) -> Result<> {
                           packed[i].pages += part.size() / kImagePage;
                           return {};
                         }));
        TRY_ASSIGN(packed[i].frame, packer->pack(bytes));
        return {};
      };
    };
    TRY(in_parallel(packed.size(), make));
    for (const auto& [frame, pages] : packed) {
      TRY(write_bytes(file, frame, offset + memory.size));
      memory.frames.frames.push_back(
          {.offset = memory.size, .size = frame.size(), .checksum = checksum(frame)});
      memory.size += frame.size();
      done(pages);
    }
  }
  return memory;
}

}  // namespace vireo
