// SPDX-License-Identifier: Apache-2.0
// virtio-blk (virtio 1.2 §5.2): what a disk looks like to its driver. Its requests are served by
// its queues, its bytes come from a Disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "devices/block/block_change.h"
#include "devices/block/block_queue.h"
#include "devices/virtio/device.h"
#include "devices/virtio/uapi.h"

namespace vireo {

class BlockDevice final : public VirtioDevice {
 public:
  struct Settings {
    std::string id;  ///< the serial that the driver reads, at most 20 bytes
    bool readonly = false;
    bool flush = true;  ///< whether the driver is offered flushes
    unsigned queues = 1;
    RateLimitConfig rate_limit;
  };

  BlockDevice(const Settings& settings, std::unique_ptr<Disk> disk);

  // VirtioDevice.
  std::uint32_t type() const override { return VIRTIO_ID_BLOCK; }
  std::uint64_t features() const override { return features_; }
  std::span<const std::uint16_t> queue_max_sizes() const override { return queue_sizes_; }
  QueueHandler& queue_handler(unsigned index) override { return *queues_[index]; }
  std::span<const std::byte> config() const override {
    return std::as_bytes(std::span(&config_, 1));
  }
  void activate(std::uint64_t features) override;
  void reset() override {}
  /// Nothing is held back by its disk, and no change of it is on its way.
  void save(SnapshotWriter& writer, unsigned index) override;
  Result<> restore(SnapshotReader& reader, unsigned index,
                   std::span<const std::byte> config) override;

  const std::string& id() const { return shared_.id; }
  bool readonly() const { return shared_.rules.readonly; }
  Disk& disk() { return *shared_.disk; }
  const Disk& disk() const { return *shared_.disk; }
  BlockChange& change() { return change_; }
  /// Puts another disk of the same size in the place of its own, which it gives back. While it
  /// stands still.
  std::unique_ptr<Disk> exchange_disk(std::unique_ptr<Disk> disk);
  const BlockCounters& counters() const { return shared_.counters; }

 private:
  std::uint64_t features_ = 0;
  std::vector<std::uint16_t> queue_sizes_;
  virtio_blk_config config_ = {};
  BlockShared shared_;
  std::vector<std::unique_ptr<BlockQueue>> queues_;
  BlockChange change_;
};

}  // namespace vireo
