// SPDX-License-Identifier: Apache-2.0
// A device with a configuration space and two queues that nothing is done with.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "devices/virtio/device.h"
#include "devices/virtio/uapi.h"

namespace vireo {

class IdleDevice final : public VirtioDevice {
 public:
  std::uint32_t type() const override { return VIRTIO_ID_NET; }
  std::uint64_t features() const override { return offered; }
  std::span<const std::uint16_t> queue_max_sizes() const override { return kSizes; }
  QueueHandler& queue_handler(unsigned index) override { return handlers_[index]; }
  std::span<const std::byte> config() const override { return config_bytes; }
  std::optional<SharedMemoryRegion> shared_memory() const override { return region; }
  void activate(std::uint64_t features) override { active_features = features; }
  void reset() override {}
  void save(SnapshotWriter& /*writer*/, unsigned /*index*/) override {}
  Result<> restore(SnapshotReader& /*reader*/, unsigned /*index*/,
                   std::span<const std::byte> /*config*/) override {
    return {};
  }

  std::uint64_t offered = 0;
  std::array<std::byte, 6> config_bytes = {std::byte{1}, std::byte{2}, std::byte{3},
                                           std::byte{4}, std::byte{5}, std::byte{6}};
  std::optional<SharedMemoryRegion> region;
  std::uint64_t active_features = 0;

 private:
  struct Handler final : QueueHandler {
    Served serve() override { return Served::kAll; }
  };
  static constexpr std::uint16_t kSizes[] = {64, 256};
  std::array<Handler, 2> handlers_;
};

}  // namespace vireo
