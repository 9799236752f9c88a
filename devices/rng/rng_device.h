// SPDX-License-Identifier: Apache-2.0
// virtio-rng (virtio 1.2 §5.4): the driver lays out buffers, the device fills them with the host's
// random bytes. The device to read first: it shows what every other one has more of.
#pragma once

#include <cstdint>
#include <span>

#include "devices/virtio/device.h"

namespace vireo {

class RngDevice final : public VirtioDevice, QueueHandler {
 public:
  explicit RngDevice(const RateLimitConfig& rate_limit = {}) : limiter_(rate_limit) {}

  // VirtioDevice.
  std::uint32_t type() const override;
  std::uint64_t features() const override { return 0; }
  std::span<const std::uint16_t> queue_max_sizes() const override { return kQueueSizes; }
  QueueHandler& queue_handler(unsigned /*index*/) override { return *this; }
  void activate(std::uint64_t /*features*/) override {}
  void reset() override {}
  void save(SnapshotWriter& writer, unsigned index) override;
  Result<> restore(SnapshotReader& reader, unsigned index,
                   std::span<const std::byte> config) override;

 private:
  static constexpr std::uint16_t kQueueSizes[] = {64};

  // QueueHandler.
  Served serve() override;

  RateLimiter limiter_;
};

}  // namespace vireo
