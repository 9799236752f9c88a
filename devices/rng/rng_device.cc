// SPDX-License-Identifier: Apache-2.0
#include "devices/rng/rng_device.h"

#include <algorithm>

#include <sys/random.h>

#include "devices/virtio/uapi.h"
#include "src/base/log.h"

namespace vireo {

namespace {

/// More than this of one request is not filled (§5.4.6.1: it need not be), so that a driver cannot
/// keep the thread busy with a few buffers of gigabytes.
constexpr std::size_t kMaxBytes = 64 << 10;

/// Fills the front of `buffers`; returns how many bytes.
std::uint32_t fill_with_random(std::span<const GuestBuffer> buffers) {
  std::size_t filled = 0;
  for (const GuestBuffer& buffer : buffers) {
    const std::size_t wanted = std::min(buffer.host.size(), kMaxBytes - filled);
    const ssize_t got = ::getrandom(buffer.host.data(), wanted, 0);
    // Fewer only for a signal, which this thread has none of, or memory that is gone.
    filled += got > 0 ? static_cast<std::size_t>(got) : 0;
    if (got != static_cast<ssize_t>(buffer.host.size())) {
      break;
    }
  }
  return static_cast<std::uint32_t>(filled);
}

struct VirtioRngState {
  static constexpr std::string_view kTag = "virtio-rng";
  static constexpr std::uint32_t kVersion = 1;

  RateLimiterState limiter;

  void fields(auto& ar) { ar(limiter); }
};

}  // namespace

std::uint32_t RngDevice::type() const {
  return VIRTIO_ID_RNG;
}

QueueHandler::Served RngDevice::serve() {
  for (unsigned served = 0; served < queue().size(); ++served) {
    std::optional<DescriptorChain> chain = queue().pop();
    if (!chain) {
      return Served::kAll;
    }
    const std::uint64_t wanted = BufferCursor(chain->writable()).remaining();
    if (!admit(limiter_, std::min<std::uint64_t>(wanted, kMaxBytes))) {
      queue().undo_pop(std::move(*chain));
      return Served::kBlocked;
    }
    const std::uint32_t filled = fill_with_random(chain->writable());
    give_back(std::move(*chain), filled);
  }
  return Served::kSome;
}

void RngDevice::save(SnapshotWriter& writer, unsigned index) {
  writer.add(index, VirtioRngState{.limiter = limiter_.state(monotonic_ns())});
}

Result<> RngDevice::restore(SnapshotReader& reader, unsigned index,
                            std::span<const std::byte> /*config*/) {
  TRY_ASSIGN(const VirtioRngState state, reader.take<VirtioRngState>(index));
  if (!limiter_.restore(state.limiter, monotonic_ns())) {
    return bad_section<VirtioRngState>(index, "has a rate limiter that cannot be");
  }
  return {};
}

}  // namespace vireo
