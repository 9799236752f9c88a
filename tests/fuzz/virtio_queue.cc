// SPDX-License-Identifier: Apache-2.0
// Fuzz target: a split virtqueue whose driver writes to its rings and its memory as it likes while
// the device pops, returns and puts back chains. What comes out is held against what Queue
// promises: buffers in memory, below 4 GiB together, heads that are out once, chains that end.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "devices/virtio/queue.h"
#include "devices/virtio/uapi.h"
#include "src/base/error.h"
#include "src/memory/guest_memory.h"
#include "tests/fuzz/fuzz_input.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMemorySize = 0x4000;
// Near each other and near the end of memory, so that a few bytes of input reach all of them.
constexpr GuestAddress kDescTable(0);
constexpr GuestAddress kAvailRing(0x100);
constexpr GuestAddress kUsedRing(0x140);
constexpr std::uint64_t kTables = 0x200;

class Device {
 public:
  Device(FuzzInput& input, GuestMemory& memory, std::span<const std::byte> bytes)
      : memory_(memory),
        bytes_(bytes),
        size_(static_cast<std::uint16_t>(1U << (input.byte() % 5U))) {
    const std::uint8_t features = input.byte();
    const auto start = static_cast<std::uint16_t>(input.number(2));
    const QueueConfig config = {.max_size = 16,
                                .size = size_,
                                .ready = true,
                                .desc_table = kDescTable,
                                .avail_ring = kAvailRing,
                                .used_ring = kUsedRing};
    queue_ =
        Queue::create(config,
                      ((features & 1U) != 0 ? feature_bit(VIRTIO_RING_F_EVENT_IDX) : 0) |
                          ((features & 2U) != 0 ? feature_bit(VIRTIO_RING_F_INDIRECT_DESC) : 0),
                      memory, {.next_avail = start, .next_used = start});
    CHECK(queue_ != nullptr);
    CHECK(memory.write_object(GuestAddress(kAvailRing.value() + 2), start));
  }
  ~Device() {
    while (!out_.empty()) {
      give_back(0, 0);
    }
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  void step(FuzzInput& input);

 private:
  void write(FuzzInput& input, std::uint64_t at, std::size_t size);
  void pop();
  void check(const DescriptorChain& chain) const;
  void give_back(std::size_t which, std::uint32_t written) {
    queue_->push_used(std::move(out_[which]), written);
    out_.erase(out_.begin() + static_cast<std::ptrdiff_t>(which));
  }

  GuestMemory& memory_;
  std::span<const std::byte> bytes_;
  std::uint16_t size_;
  std::unique_ptr<Queue> queue_;
  std::vector<DescriptorChain> out_;
};

void Device::write(FuzzInput& input, std::uint64_t at, std::size_t size) {
  std::array<std::byte, 16> bytes = {};
  const std::span data = std::span(bytes).first(size);
  input.fill(data);
  CHECK(memory_.write(GuestAddress(at), data));
}

void Device::check(const DescriptorChain& chain) const {
  CHECK(chain.head() < size_);
  std::uint64_t sum = 0;
  for (const std::span<const GuestBuffer> part : {chain.readable(), chain.writable()}) {
    for (const GuestBuffer& buffer : part) {
      CHECK(!buffer.host.empty() && buffer.address.value() < kMemorySize &&
            buffer.host.size() <= kMemorySize - buffer.address.value());
      CHECK(buffer.host.data() == bytes_.data() + buffer.address.value());
      sum += buffer.host.size();
    }
  }
  CHECK(sum <= 0xffffffff);
  CHECK(chain.readable().size() + chain.writable().size() <= size_);
  CHECK(std::ranges::none_of(
      out_, [&chain](const DescriptorChain& other) { return other.head() == chain.head(); }));
}

void Device::pop() {
  if (std::optional<DescriptorChain> chain = queue_->pop()) {
    check(*chain);
    out_.push_back(std::move(*chain));
  }
  CHECK(queue_->outstanding() == out_.size());
}

void Device::step(FuzzInput& input) {
  const std::uint8_t what = input.byte();
  switch (what >> 5) {
    case 0:  // a descriptor, or one of a table elsewhere
      write(input,
            (what & 0x10) != 0 ? kTables + std::uint64_t{16} * (what & 0xfU)
                               : std::uint64_t{16} * (what & 0xfU),
            16);
      break;
    case 1:  // a word of the avail ring, its event index included
      write(input, kAvailRing.value() + std::uint64_t{2} * (what & 0x1fU), 2);
      break;
    case 2: {  // the next entry, and the index as a driver sets it
      const auto idx = memory_.read_object<std::uint16_t>(GuestAddress(kAvailRing.value() + 2));
      const GuestAddress entry(kAvailRing.value() + 4 + std::uint64_t{2} * (*idx % size_));
      CHECK(memory_.write_object(entry, static_cast<std::uint16_t>(what & 0x1fU)));
      CHECK(memory_.write_object(GuestAddress(kAvailRing.value() + 2),
                                 static_cast<std::uint16_t>(*idx + 1)));
      break;
    }
    case 3:
    case 4:
      pop();
      break;
    case 5:
      if (!out_.empty()) {
        give_back(what % out_.size(), input.byte());
      }
      break;
    case 6:
      if (std::optional<DescriptorChain> chain = queue_->pop()) {
        const std::uint16_t head = chain->head();
        queue_->undo_pop(std::move(*chain));
        CHECK(queue_->outstanding() == out_.size());
        // The driver has not changed it meanwhile.
        chain = queue_->pop();
        CHECK(chain && chain->head() == head);
        check(*chain);
        out_.push_back(std::move(*chain));
      }
      break;
    default:
      queue_->publish();
      queue_->needs_interrupt();
      queue_->disarm();
      queue_->rearm();
      break;
  }
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  alignas(4096) static std::array<std::byte, vireo::kMemorySize> bytes;
  bytes.fill(std::byte{0});
  static const std::unique_ptr<vireo::GuestMemory> memory =
      vireo::GuestMemory::adopt(vireo::GuestAddress(0), bytes);
  vireo::FuzzInput input(data, size);
  vireo::Device device(input, *memory, bytes);
  while (!input.empty()) {
    device.step(input);
  }
  return 0;
}
