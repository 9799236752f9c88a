// SPDX-License-Identifier: Apache-2.0
#include "src/memory/memory_layer.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include <sched.h>
#include <zstd.h>

#include <fmt/core.h>

#include "src/base/checksum.h"
#include "src/base/fd.h"

namespace vireo {

namespace {

constexpr std::size_t kThreadsMax = 16;

std::unexpected<Error> damaged(const std::string& what) {
  return fail(ErrorCode::kBadInput, what + ": is damaged: its checksum is another one");
}

/// By a system call alone: a process in its sandbox reaches no files.
std::size_t usable_processors() {
  cpu_set_t set = {};
  // More than it has room for are more than are of use here.
  return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? static_cast<std::size_t>(CPU_COUNT(&set))
                                                        : kThreadsMax;
}

}  // namespace

std::vector<LayerPiece> pieces_of(const MemoryLayer& layer, std::uint64_t plain) {
  const std::uint64_t unit = layer.frames ? layer.frames->places : plain;
  std::vector<LayerPiece> pieces;
  std::uint64_t page = 0;
  for (const PageRun& run : layer.runs) {
    for (std::uint64_t done = 0; done < run.count && run.kind == PageKind::kData;) {
      const std::uint64_t place = run.position + done;
      const std::uint64_t count = std::min(run.count - done, unit - place % unit);
      pieces.push_back({.page = page + done, .place = place, .count = count});
      done += count;
    }
    page += run.count;
  }
  return pieces;
}

void LayerReader::FreeContext::operator()(ZSTD_DCtx_s* context) const {
  ZSTD_freeDCtx(context);
}

/// What it needs is there from the beginning: one who waits for a page waits for no memory.
LayerReader::LayerReader(const MemoryLayer& layer) : layer_(&layer) {
  if (layer.frames) {
    context_.reset(ZSTD_createDCtx());
    if (!context_) {
      throw std::bad_alloc();
    }
    pages_.resize(layer.frames->places * kImagePage);
    packed_.resize(ZSTD_compressBound(pages_.size()));
  }
}

Result<> LayerReader::read(std::uint64_t place, std::span<std::byte> bytes) {
  Result<> read = read_checked(place, bytes);
  return read || layer_->path.empty()
             ? read
             : std::unexpected(std::move(read).error().context(layer_->path));
}

Result<> LayerReader::read_checked(std::uint64_t place, std::span<std::byte> bytes) {
  TRY(layer_->frames ? read_frames(place, bytes)
                     : read_full_at(layer_->file, bytes, layer_->offset + place * kImagePage));
  for (std::uint64_t i = 0; i < bytes.size() / kImagePage; ++i) {
    if (checksum(bytes.subspan(i * kImagePage, kImagePage)) != layer_->checksums[place + i]) {
      return damaged(layer_->frames ? fmt::format("the page with place {}", place + i)
                                    : fmt::format("the page at {}",
                                                  layer_->offset + (place + i) * kImagePage));
    }
  }
  return {};
}

Result<> LayerReader::read_frames(std::uint64_t place, std::span<std::byte> bytes) {
  const std::uint64_t unit = layer_->frames->places;
  while (!bytes.empty()) {
    const std::uint64_t frame = place / unit;
    const std::uint64_t first = place % unit;
    const std::uint64_t all = std::min(unit, layer_->checksums.size() - frame * unit);
    const std::uint64_t count = std::min(all - first, bytes.size() / kImagePage);
    const std::span target = bytes.first(count * kImagePage);
    if (count == all) {
      TRY(unpack(frame, target));
    } else {
      const std::span pages = std::span(pages_).first(all * kImagePage);
      if (frame_ != frame) {
        frame_.reset();
        TRY(unpack(frame, pages));
        frame_ = frame;
      }
      std::ranges::copy(pages.subspan(first * kImagePage, target.size()), target.begin());
    }
    bytes = bytes.subspan(target.size());
    place += count;
  }
  return {};
}

Result<> LayerReader::unpack(std::uint64_t frame, std::span<std::byte> bytes) {
  const FrameTable::Frame& entry = layer_->frames->frames[frame];
  const std::span packed = std::span(packed_).first(entry.size);
  TRY(read_full_at(layer_->file, packed, layer_->offset + entry.offset));
  if (checksum(packed) != entry.checksum) {
    return damaged(fmt::format("frame {} at {}", frame, layer_->offset + entry.offset));
  }
  // Also one whose checksum is right may be anybody's.
  const std::size_t size =
      ZSTD_decompressDCtx(context_.get(), bytes.data(), bytes.size(), packed.data(), packed.size());
  if (size != bytes.size()) {
    return fail(
        ErrorCode::kBadInput,
        fmt::format("frame {} at {}: {}", frame, layer_->offset + entry.offset,
                    ZSTD_isError(size) != 0 ? ZSTD_getErrorName(size) : "has too few pages"));
  }
  return {};
}

Result<> in_parallel(std::size_t pieces, const std::function<PieceWork()>& make) {
  std::atomic<std::size_t> next = 0;
  std::atomic<bool> ended = false;
  std::mutex mutex;  // of the error
  Result<> result;
  const auto work = [&] {
    Result<> done;
    try {
      const PieceWork each = make();
      while (done && !ended) {
        const std::size_t piece = next.fetch_add(1, std::memory_order_relaxed);
        if (piece >= pieces) {
          return;
        }
        done = each(piece);
      }
    } catch (const std::bad_alloc&) {
      done = fail_errno(ENOMEM, "memory for reading a snapshot");
    }
    const std::scoped_lock lock(mutex);
    if (!done && result) {
      result = std::move(done);
      ended = true;
    }
  };
  const std::size_t most = std::min({pieces, kThreadsMax, usable_processors()});
  std::vector<std::thread> threads;
  try {
    while (threads.size() + 1 < most) {
      threads.emplace_back(work);
    }
  } catch (const std::system_error&) {
    // With fewer than we would like it goes on.
  }
  work();
  for (std::thread& thread : threads) {
    thread.join();
  }
  return result;
}

}  // namespace vireo
