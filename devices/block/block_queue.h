// SPDX-License-Identifier: Apache-2.0
// One queue of a block device (virtio 1.2 §5.2.2): its requests, on their way to the disk and back.
// Owned by the device; everything on the queue's reactor.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/block/block_request.h"
#include "devices/block/disk.h"
#include "devices/virtio/queue_handler.h"
#include "src/base/log.h"
#include "src/io/rate_limiter.h"

namespace vireo {

/// What the requests of a device have come to. Any thread.
struct BlockCounters {
  std::atomic<std::uint64_t> reads = 0;
  std::atomic<std::uint64_t> writes = 0;
  std::atomic<std::uint64_t> flushes = 0;
  std::atomic<std::uint64_t> discards = 0;  ///< and write-zeroes
  std::atomic<std::uint64_t> read_bytes = 0;
  std::atomic<std::uint64_t> written_bytes = 0;
  std::atomic<std::uint64_t> errors = 0;     ///< the host's: EIO, ENOSPC, …
  std::atomic<std::uint64_t> refused = 0;    ///< the guest's: requests that cannot be
  std::atomic<std::uint64_t> throttled = 0;  ///< times that requests had to wait for a limit
};

/// What the queues of a device share. Changed only while none of them runs.
struct BlockShared {
  std::string id;
  std::unique_ptr<Disk> disk;
  BlockRequestRules rules;
  /// No flush is to be expected: each write has to be durable when it ends (§5.2.6.2).
  bool write_through = false;
  RateLimiter limiter;  // any thread
  BlockCounters counters;
  LogLimiter log_limiter;
};

class BlockQueue final : public QueueHandler {
 public:
  explicit BlockQueue(BlockShared& shared)
      : shared_(shared), disk_(shared.disk.get()), size_(shared.disk->size()) {}

  /// Serves `disk` from now on, which may be the same with another size. `left` is called when
  /// nothing is on the disk before any more. On the queue's reactor, as all of it.
  void adopt(Disk& disk, std::function<void()> left);
  /// The same at once, while the device stands still: the main thread.
  void replace(Disk& disk);

 private:
  /// A request that is served; there are as many as there ever were at a time.
  struct Pending : DiskOp {
    Disk* disk = nullptr;
    BlockRequest request;
    std::optional<DescriptorChain> chain;
    std::size_t next_range = 0;
    bool flushing = false;  // after a write, for write-through
  };

  // QueueHandler.
  Served serve() override;

  Pending& take_spare();
  void begin(Pending& pending);
  void begin_next_range(Pending& pending);
  void on_disk(DiskOp& op, int errnum);
  void end(Pending& pending, std::uint8_t status);
  void get_id(Pending& pending);
  void count(const BlockRequest& request);

  BlockShared& shared_;
  Disk* disk_;
  std::uint64_t size_;
  std::size_t on_old_disk_ = 0;  // requests
  std::function<void()> left_;   // to be called when there are none
  std::vector<std::unique_ptr<Pending>> pending_;
  std::vector<Pending*> spare_;  // those that serve no request
};

}  // namespace vireo
