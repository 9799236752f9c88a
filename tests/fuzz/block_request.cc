// SPDX-License-Identifier: Apache-2.0
// Fuzz target: a request of virtio-blk in a chain of any shape. What is accepted is held against
// what the disk relies on: bytes and ranges within it, in whole blocks, and pieces of guest memory
// that have just as many.
#include "devices/block/block_request.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "devices/virtio/queue.h"
#include "devices/virtio/uapi.h"
#include "src/base/error.h"
#include "src/memory/guest_memory.h"
#include "tests/fuzz/fuzz_input.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMemorySize = 0x8000;
constexpr GuestAddress kDescTable(0);
constexpr GuestAddress kAvailRing(0x200);
constexpr GuestAddress kUsedRing(0x300);
constexpr std::uint64_t kData = 0x1000;
constexpr std::uint16_t kQueueSize = 16;

struct WireDescriptor {
  std::uint64_t address;
  std::uint32_t length;
  std::uint16_t flags;
  std::uint16_t next;
};

/// One chain, whose buffers lie one behind the other unless the input says otherwise.
void write_chain(FuzzInput& input, GuestMemory& memory) {
  const unsigned count = 1 + input.byte() % kQueueSize;
  const unsigned readable = input.byte() % (count + 1);
  std::uint64_t at = kData;
  for (unsigned i = 0; i < count; ++i) {
    const std::uint8_t shape = input.byte();
    const std::uint32_t length = (shape & 1U) != 0 ? 512U * (1 + (shape >> 4U)) : shape >> 1U;
    const WireDescriptor descriptor = {
        .address = at,
        .length = length,
        .flags = static_cast<std::uint16_t>((i + 1 < count ? VRING_DESC_F_NEXT : 0) |
                                            (i < readable ? 0 : VRING_DESC_F_WRITE)),
        .next = static_cast<std::uint16_t>(i + 1)};
    CHECK(
        memory.write_object(GuestAddress(kDescTable.value() + 16 * std::uint64_t{i}), descriptor));
    at += length;
  }
}

void check_place(const BlockRequestRules& rules, std::uint64_t offset, std::uint64_t length) {
  CHECK(offset <= rules.size && length <= rules.size - offset);
  CHECK(offset % rules.block_size == 0 && length % rules.block_size == 0);
}

void check_accepted(const BlockRequest& request, const BlockRequestRules& rules,
                    std::span<const std::byte> memory) {
  std::uint64_t sum = 0;
  for (const iovec& piece : request.pieces) {
    const auto* const begin = static_cast<const std::byte*>(piece.iov_base);
    CHECK(begin >= memory.data() && begin + piece.iov_len <= memory.data() + memory.size());
    sum += piece.iov_len;
  }
  switch (request.type) {
    case VIRTIO_BLK_T_OUT:
      CHECK(!rules.readonly);
      [[fallthrough]];
    case VIRTIO_BLK_T_IN:
      CHECK(sum == request.length);
      check_place(rules, request.offset, request.length);
      break;
    case VIRTIO_BLK_T_GET_ID:
      CHECK(sum == kIdBytes);
      break;
    default:
      CHECK(sum == 0);
      break;
  }
  CHECK(request.ranges.size() <= kRangesMax);
  for (const BlockRequest::Range& range : request.ranges) {
    CHECK(range.length > 0);
    check_place(rules, range.offset, range.length);
  }
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vireo;  // NOLINT(google-build-using-namespace)
  alignas(4096) static std::array<std::byte, kMemorySize> bytes;
  bytes.fill(std::byte{0});
  static const std::unique_ptr<GuestMemory> memory = GuestMemory::adopt(GuestAddress(0), bytes);
  FuzzInput input(data, size);
  const std::uint8_t settings = input.byte();
  const BlockRequestRules rules = {.size = std::uint64_t{4096} * (1 + (settings >> 3U)),
                                   .block_size = (settings & 1U) != 0 ? 4096U : 512U,
                                   .readonly = (settings & 2U) != 0,
                                   .features = (settings & 4U) != 0 ? 0 : ~std::uint64_t{0}};
  write_chain(input, *memory);
  input.fill(std::span(bytes).subspan(kData, 256));
  CHECK(memory->write_object(GuestAddress(kAvailRing.value() + 2), std::uint16_t{1}));
  const std::unique_ptr<Queue> queue = Queue::create({.max_size = kQueueSize,
                                                      .size = kQueueSize,
                                                      .ready = true,
                                                      .desc_table = kDescTable,
                                                      .avail_ring = kAvailRing,
                                                      .used_ring = kUsedRing},
                                                     0, *memory);
  CHECK(queue != nullptr);
  if (std::optional<DescriptorChain> chain = queue->pop()) {
    BlockRequest request;
    const std::uint8_t status = parse_block_request(*chain, rules, request);
    if (status == VIRTIO_BLK_S_OK) {
      check_accepted(request, rules, bytes);
    }
    CHECK(write_block_status(*chain, status) != chain->writable().empty());
    queue->push_used(std::move(*chain), 0);
  }
  return 0;
}
