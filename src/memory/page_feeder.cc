// SPDX-License-Identifier: Apache-2.0
#include "src/memory/page_feeder.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <future>
#include <system_error>
#include <utility>

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/memory/bus_error.h"
#include "src/memory/memory_image.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace vireo {

namespace {

constexpr int kExitBadInput = 65;
constexpr int kExitSystem = 71;
/// Pages of a plain layer that come together: who touches one waits for them all.
constexpr std::uint64_t kPagesTogether = 32;
/// So many watched ranges at most, each of which is a mapping to the kernel.
constexpr std::size_t kRangesMax = 8192;
/// Fewer pages than these that are not data between others are watched along with them.
constexpr std::uint64_t kGapPages = 512;

/// Calls `visit(bytes)` for pages in the order of regions, which may lie in several.
template <typename Visit>
void for_each_part(const GuestMemory& memory, std::uint64_t page, std::uint64_t count,
                   Visit visit) {
  std::uint64_t first = 0;  // of the region
  for (const GuestMemory::Region& region : memory.regions()) {
    const std::uint64_t pages = region.host.size() / kImagePage;
    const std::uint64_t begin = std::max(first, page);
    const std::uint64_t end = std::min(first + pages, page + count);
    if (begin < end) {
      visit(region.host.subspan((begin - first) * kImagePage, (end - begin) * kImagePage));
    }
    first += pages;
  }
}

std::uint64_t address_of(std::span<const std::byte> bytes) {
  return reinterpret_cast<std::uint64_t>(bytes.data());
}

/// What is to be watched: all pieces, and small gaps between them.
std::vector<std::span<std::byte>> ranges_of(const GuestMemory& memory,
                                            std::span<const LayerPiece> pieces) {
  for (std::uint64_t gap = kGapPages;; gap *= 2) {
    std::vector<std::span<std::byte>> ranges;
    for (std::size_t i = 0; i < pieces.size();) {
      const std::uint64_t first = pieces[i].page;
      std::uint64_t end = first + pieces[i].count;
      for (++i; i < pieces.size() && pieces[i].page - end < gap; ++i) {
        end = pieces[i].page + pieces[i].count;
      }
      for_each_part(memory, first, end - first,
                    [&](std::span<std::byte> bytes) { ranges.push_back(bytes); });
    }
    if (ranges.size() <= kRangesMax) {
      return ranges;
    }
  }
}

uffdio_range range_of(std::span<const std::byte> bytes) {
  return {.start = address_of(bytes), .len = bytes.size()};
}

}  // namespace

PageFeeder::PageFeeder(UniqueFd userfaultfd, GuestMemory& memory, MemoryLayer layer, UniqueFd file,
                       std::string name)
    : userfaultfd_(std::move(userfaultfd)),
      memory_(memory),
      layer_(std::move(layer)),
      file_(std::move(file)),
      name_(std::move(name)),
      pieces_(pieces_of(layer_, kPagesTogether)),
      watched_(ranges_of(memory, pieces_)),
      reader_(layer_),
      buffer_((layer_.frames ? layer_.frames->places : kPagesTogether) * kImagePage),
      brought_(pieces_.size()) {}

Result<std::unique_ptr<PageFeeder>> PageFeeder::create(UniqueFd userfaultfd, GuestMemory& memory,
                                                       MemoryLayer layer, UniqueFd file,
                                                       std::string name) {
  auto feeder = std::unique_ptr<PageFeeder>(new PageFeeder(
      std::move(userfaultfd), memory, std::move(layer), std::move(file), std::move(name)));
  TRY(feeder->watch());
  return feeder;
}

PageFeeder::~PageFeeder() {
  stop();
}

Result<> PageFeeder::watch() {
  uffdio_api api = {};
  api.api = UFFD_API;
  TRY(try_ioctl(userfaultfd_.get(), UFFDIO_API, &api, "UFFDIO_API"));
  for (const std::span<std::byte> bytes : watched_) {
    uffdio_register range = {};
    range.range = range_of(bytes);
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    TRY(try_ioctl(userfaultfd_.get(), UFFDIO_REGISTER, &range, "UFFDIO_REGISTER"));
    memory_.expect_pages(bytes);
  }
  return {};
}

Result<> PageFeeder::start(const std::function<Result<>()>& begins, std::function<void()> done) {
  CHECK(!thread_.joinable());
  stopping_ = false;
  done_ = std::move(done);
  const auto begun = std::make_shared<std::promise<Result<>>>();
  try {
    thread_ = std::thread([this, begins, begun] {
      ::pthread_setname_np(::pthread_self(), "vireo-feeder");
      Result<> ready = begins ? begins() : Result<>();
      const bool serves = ready.has_value();
      begun->set_value(std::move(ready));
      if (!serves) {
        return;
      }
      if (const Result<> served = serve(); !served) {
        end_without_page(
            name_ + ": " + served.error().message(),
            served.error().code() == ErrorCode::kBadInput ? kExitBadInput : kExitSystem);
      }
    });
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "starting the thread that brings guest memory");
  }
  Result<> ready = begun->get_future().get();
  if (!ready) {
    thread_.join();
  }
  return ready;
}

void PageFeeder::stop() {
  if (!thread_.joinable()) {
    return;
  }
  stopping_ = true;
  thread_.join();
}

// On its thread
// ---------------------------------------------------------------------------------

/// Faults first, then one piece behind them: it has something to do until all are there.
Result<> PageFeeder::serve() {
  while (!stopping_) {
    TRY_ASSIGN(const bool served, serve_faults());
    if (served) {
      continue;
    }
    if (next_ == pieces_.size()) {
      finish();
      return {};
    }
    TRY(bring(next_++));
  }
  return {};
}

/// False where there were none.
Result<bool> PageFeeder::serve_faults() {
  std::array<uffd_msg, 16> messages;
  const ssize_t bytes = ::read(userfaultfd_.get(), messages.data(), sizeof(messages));
  if (bytes < 0 && errno != EAGAIN && errno != EINTR) {
    return fail_errno(errno, "reading the faults of guest memory");
  }
  const std::size_t count = bytes < 0 ? 0 : static_cast<std::size_t>(bytes) / sizeof(uffd_msg);
  for (std::size_t i = 0; i < count; ++i) {
    if (messages[i].event == UFFD_EVENT_PAGEFAULT) {
      TRY(bring_page(messages[i].arg.pagefault.address));
    }
  }
  return count > 0;
}

Result<> PageFeeder::bring_page(std::uint64_t address) {
  std::uint64_t page = 0;
  std::span<std::byte> bytes;
  for (const GuestMemory::Region& region : memory_.regions()) {
    const std::uint64_t start = address_of(region.host);
    if (address >= start && address < start + region.host.size()) {
      const std::uint64_t number = (address - start) / kImagePage;
      page += number;
      bytes = region.host.subspan(number * kImagePage, kImagePage);
      break;
    }
    page += region.host.size() / kImagePage;
  }
  CHECK(!bytes.empty());
  const auto behind = std::ranges::upper_bound(pieces_, page, {}, &LayerPiece::page);
  const auto piece = behind == pieces_.begin() ? behind : std::prev(behind);
  if (piece != pieces_.end() && page >= piece->page && page < piece->page + piece->count) {
    return bring(static_cast<std::size_t>(piece - pieces_.begin()));
  }
  return put_zeros(bytes);
}

Result<> PageFeeder::bring(std::size_t number) {
  if (brought_[number]) {
    return {};  // who waited has been woken
  }
  const LayerPiece& piece = pieces_[number];
  const std::span bytes = std::span(buffer_).first(piece.count * kImagePage);
  TRY(reader_.read(piece.place, bytes));
  Result<> copied;
  std::size_t done = 0;
  for_each_part(memory_, piece.page, piece.count, [&](std::span<std::byte> part) {
    if (copied) {
      copied = copy(part, bytes.subspan(done, part.size()));
    }
    done += part.size();
  });
  brought_[number] = copied.has_value();
  return copied;
}

Result<> PageFeeder::copy(std::span<std::byte> to, std::span<const std::byte> from) {
  while (!to.empty()) {
    uffdio_copy request = {};
    request.dst = address_of(to);
    request.src = address_of(from);
    request.len = to.size();
    const bool failed = ::ioctl(userfaultfd_.get(), UFFDIO_COPY, &request) < 0;
    // Another thread of the process changes mappings: what was copied until then is said.
    if (failed && errno != EAGAIN) {
      return fail_errno(errno, "guest memory: the host could not provide a page");
    }
    const std::size_t copied = request.copy > 0 ? static_cast<std::size_t>(request.copy) : 0;
    to = to.subspan(copied);
    from = from.subspan(copied);
  }
  return {};
}

Result<> PageFeeder::put_zeros(std::span<std::byte> bytes) {
  uffdio_zeropage request = {};
  request.range = range_of(bytes);
  while (::ioctl(userfaultfd_.get(), UFFDIO_ZEROPAGE, &request) < 0) {
    if (errno == EEXIST) {
      return {};  // two waited for it
    }
    if (errno != EAGAIN) {
      return fail_errno(errno, "guest memory: the host could not provide a page");
    }
  }
  return {};
}

/// All is there: the rest are zeros, as the kernel has them.
void PageFeeder::finish() {
  for (const std::span<std::byte> bytes : watched_) {
    uffdio_range range = range_of(bytes);
    // Refused, it is unwatched with the descriptor.
    ::ioctl(userfaultfd_.get(), UFFDIO_UNREGISTER, &range);
  }
  for (std::span<std::byte> run : dense_blocks(memory_, pieces_)) {
    for (; !run.empty() && !stopping_; run = run.subspan(kHugePage)) {
      // A kernel that cannot, or has no memory for it, leaves what is there.
      ::madvise(run.data(), kHugePage, MADV_COLLAPSE);
    }
  }
  if (done_ && !stopping_) {
    done_();
  }
}

}  // namespace vireo
