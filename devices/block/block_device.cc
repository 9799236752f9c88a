// SPDX-License-Identifier: Apache-2.0
#include "devices/block/block_device.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include <fmt/core.h>

#include "src/base/log.h"

namespace vireo {

namespace {

constexpr std::uint16_t kQueueSize = 256;
/// Descriptors of a request that hold data: the header and the status have one each.
constexpr std::uint32_t kSegmentsMax = kQueueSize - 2;

// The configuration space is little-endian (§5.2.4), and so are the machines that this runs on.
static_assert(std::endian::native == std::endian::little);

std::uint64_t features_of(const BlockDevice::Settings& settings) {
  std::uint64_t features = feature_bit(VIRTIO_BLK_F_SEG_MAX) | feature_bit(VIRTIO_BLK_F_BLK_SIZE) |
                           feature_bit(VIRTIO_BLK_F_TOPOLOGY);
  if (settings.queues > 1) {
    features |= feature_bit(VIRTIO_BLK_F_MQ);
  }
  if (settings.readonly) {
    return features | feature_bit(VIRTIO_BLK_F_RO);
  }
  if (settings.flush) {
    features |= feature_bit(VIRTIO_BLK_F_FLUSH);
  }
  return features | feature_bit(VIRTIO_BLK_F_DISCARD) | feature_bit(VIRTIO_BLK_F_WRITE_ZEROES);
}

virtio_blk_config config_of(const BlockDevice::Settings& settings, const Disk& disk) {
  const BlockLimits& limits = disk.limits();
  const std::uint32_t physical = std::max(limits.block_size, limits.physical_block_size);
  virtio_blk_config config = {};
  config.capacity = disk.size() / kSectorSize;
  config.seg_max = kSegmentsMax;
  config.blk_size = limits.block_size;
  config.physical_block_exp =
      static_cast<std::uint8_t>(std::countr_zero(physical / limits.block_size));
  config.min_io_size = static_cast<std::uint16_t>(physical / limits.block_size);
  config.opt_io_size = limits.optimal_size / limits.block_size;
  config.num_queues = static_cast<std::uint16_t>(settings.queues);
  if (!settings.readonly) {
    config.max_discard_sectors = kRangeSectorsMax;
    config.max_discard_seg = kRangesMax;
    config.discard_sector_alignment = physical / kSectorSize;
    config.max_write_zeroes_sectors = kRangeSectorsMax;
    config.max_write_zeroes_seg = kRangesMax;
    config.write_zeroes_may_unmap = 1;
  }
  return config;
}

using BlockId = std::array<std::byte, kIdBytes>;

BlockId block_id(const std::string& id) {
  BlockId bytes = {};
  std::ranges::copy(std::as_bytes(std::span(id)).first(std::min(id.size(), bytes.size())),
                    bytes.begin());
  return bytes;
}

struct VirtioBlkState {
  static constexpr std::string_view kTag = "virtio-blk";
  static constexpr std::uint32_t kVersion = 1;

  BlockId id = {};
  bool flush_failed = false;
  RateLimiterState limiter;

  void fields(auto& ar) { ar(id, flush_failed, limiter); }
};

}  // namespace

BlockDevice::BlockDevice(const Settings& settings, std::unique_ptr<Disk> disk)
    : features_(features_of(settings)),
      queue_sizes_(settings.queues, kQueueSize),
      config_(config_of(settings, *disk)),
      change_(shared_, queues_, config_) {
  shared_.id = settings.id;
  shared_.rules = {
      .size = disk->size(), .block_size = disk->limits().block_size, .readonly = settings.readonly};
  shared_.limiter.configure(settings.rate_limit, 0);
  shared_.disk = std::move(disk);
  for (unsigned i = 0; i < settings.queues; ++i) {
    queues_.push_back(std::make_unique<BlockQueue>(shared_));
  }
}

void BlockDevice::activate(std::uint64_t features) {
  shared_.rules.features = features;
  constexpr std::uint64_t kFlush = feature_bit(VIRTIO_BLK_F_FLUSH);
  shared_.write_through = (features_ & kFlush) != 0 && (features & kFlush) == 0;
}

std::unique_ptr<Disk> BlockDevice::exchange_disk(std::unique_ptr<Disk> disk) {
  CHECK(!change_.busy() && disk->size() / kSectorSize == config_.capacity);
  if (shared_.disk->flush_failed()) {
    disk->set_flush_failed();
  }
  std::swap(shared_.disk, disk);
  for (const auto& queue : queues_) {
    queue->replace(*shared_.disk);
  }
  return disk;
}

void BlockDevice::save(SnapshotWriter& writer, unsigned index) {
  CHECK(!disk().wants_flush() && !change_.busy());
  writer.add(index, VirtioBlkState{.id = block_id(id()),
                                   .flush_failed = disk().flush_failed(),
                                   .limiter = shared_.limiter.state(monotonic_ns())});
}

Result<> BlockDevice::restore(SnapshotReader& reader, unsigned index,
                              std::span<const std::byte> config) {
  TRY_ASSIGN(const VirtioBlkState state, reader.take<VirtioBlkState>(index));
  virtio_blk_config told = {};
  std::ranges::copy(config, std::as_writable_bytes(std::span(&told, 1)).begin());
  if (state.id != block_id(id())) {
    return bad_section<VirtioBlkState>(index, fmt::format("is of another disk than {}", id()));
  }
  const std::uint32_t block_size = told.blk_size;
  if (!std::has_single_bit(block_size) || block_size < disk().limits().block_size ||
      disk().size() % block_size != 0) {
    return bad_section<VirtioBlkState>(
        index, fmt::format("is of a disk with blocks of {} bytes, and those of {} here are {}",
                           block_size, id(), disk().limits().block_size));
  }
  const std::uint64_t capacity = disk().size() / kSectorSize;
  if (const std::uint64_t sectors = told.capacity; sectors > capacity) {
    return bad_section<VirtioBlkState>(
        index,
        fmt::format("is of a disk with {} sectors, and {} has {} here", sectors, id(), capacity));
  }
  if (!shared_.limiter.restore(state.limiter, monotonic_ns())) {
    return bad_section<VirtioBlkState>(index, "has a rate limiter that cannot be");
  }
  // What else the driver was told are hints, of how the disk before was best used.
  config_ = told;
  config_.capacity = capacity;
  shared_.rules.block_size = block_size;
  if (state.flush_failed) {
    disk().set_flush_failed();
  }
  return {};
}

}  // namespace vireo
