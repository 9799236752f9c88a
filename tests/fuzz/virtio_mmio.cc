// SPDX-License-Identifier: Apache-2.0
// Fuzz target: the registers of virtio-mmio in front of a virtio-rng device, under a guest that
// reads and writes them and its own memory as it likes, at any width, while the device serves its
// queue on a reactor.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "devices/rng/rng_device.h"
#include "devices/virtio/mmio_transport.h"
#include "devices/virtio/uapi.h"
#include "src/base/endian.h"
#include "src/base/log.h"
#include "src/io/reactor.h"
#include "src/memory/guest_memory.h"
#include "tests/fuzz/fuzz_host.h"
#include "tests/fuzz/fuzz_input.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMemorySize = 0x8000;

struct Line final : Interrupt {
  void raise() override {}
};

class Board {
 public:
  explicit Board(FuzzHost& host) : host_(host) {
    std::ranges::fill(host.room.bytes(), std::byte{0});
    const std::array<Reactor*, 1> reactors = {host.reactor.get()};
    transport_ = std::move(*MmioTransport::create(device_, *host.memory, reactors, line_));
  }
  ~Board() {
    write(VIRTIO_MMIO_STATUS, 0);
    CHECK(read(VIRTIO_MMIO_STATUS) == 0);
  }
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  void step(FuzzInput& input);

 private:
  std::uint32_t read(std::uint64_t offset) {
    std::array<std::byte, sizeof(le32)> bytes = {};
    transport_->read(offset, bytes);
    return std::bit_cast<le32>(bytes);
  }
  void write(std::uint64_t offset, std::uint32_t value) {
    transport_->write(offset, std::bit_cast<std::array<std::byte, sizeof(le32)>>(le32(value)));
  }
  void begin(std::uint32_t features);

  FuzzHost& host_;
  Line line_;
  RngDevice device_;
  std::unique_ptr<MmioTransport> transport_;
};

/// What a driver does up to DRIVER_OK, so that a few bytes of input lead to a device in use.
void Board::begin(std::uint32_t features) {
  constexpr std::uint32_t kAlive = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
  write(VIRTIO_MMIO_STATUS, kAlive);
  write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
  write(VIRTIO_MMIO_DRIVER_FEATURES, features << VIRTIO_RING_F_INDIRECT_DESC);
  write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
  write(VIRTIO_MMIO_DRIVER_FEATURES, 1);  // VIRTIO_F_VERSION_1
  write(VIRTIO_MMIO_STATUS, kAlive | VIRTIO_CONFIG_S_FEATURES_OK);
  write(VIRTIO_MMIO_QUEUE_SEL, 0);
  write(VIRTIO_MMIO_QUEUE_NUM, 8);
  write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x100);
  write(VIRTIO_MMIO_QUEUE_USED_LOW, 0x200);
  write(VIRTIO_MMIO_QUEUE_READY, 1);
  write(VIRTIO_MMIO_STATUS, kAlive | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

void Board::step(FuzzInput& input) {
  const std::uint8_t what = input.byte();
  switch (what >> 6) {
    case 0: {  // any access
      std::array<std::byte, 8> bytes = {};
      const std::span data = std::span(bytes).first(std::size_t{1} << (what & 3U));
      const std::uint64_t offset = input.number(2) % (MmioTransport::kSize - 7);
      if ((what & 4U) != 0) {
        input.fill(data);
        transport_->write(offset, data);
      } else {
        transport_->read(offset, data);
      }
      break;
    }
    case 1:  // a register
      write(std::uint64_t{4} * (what & 0x3fU), static_cast<std::uint32_t>(input.number(2)));
      break;
    case 2: {
      std::array<std::byte, 16> bytes = {};
      const std::uint64_t at = input.number(2) % (kMemorySize - bytes.size());
      const std::span data = std::span(bytes).first((what & 1U) == 0 ? 16 : 2);
      input.fill(data);
      CHECK(host_.memory->write(GuestAddress(at), data));
      break;
    }
    default:
      if ((what & 8U) == 0) {
        begin(what & 3U);
      } else {
        write(VIRTIO_MMIO_QUEUE_NOTIFY, what & 1U);
      }
      break;
  }
  CHECK(read(VIRTIO_MMIO_MAGIC_VALUE) == 0x74726976);
  CHECK(read(VIRTIO_MMIO_QUEUE_NUM_MAX) == 0 || read(VIRTIO_MMIO_QUEUE_NUM_MAX) == 64);
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Guests may fill a log; a fuzzer's terminal needs not.
  static const bool quiet = vireo::open_log({.level = vireo::LogLevel::kOff}).has_value();
  CHECK(quiet);
  static vireo::FuzzHost host(vireo::kMemorySize);
  vireo::FuzzInput input(data, size);
  vireo::Board board(host);
  while (!input.empty()) {
    board.step(input);
  }
  return 0;
}
