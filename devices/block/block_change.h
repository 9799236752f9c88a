// SPDX-License-Identifier: Apache-2.0
// A change of a disk under its driver: another size, another disk in its place, other limits.
//
// Nothing is stopped for it. Each queue takes the change on its own reactor; what it had begun on
// the old disk ends there. When all have, the old disk is flushed and let go.
//
// One for each device, owned with it. Every call is of the first reactor's thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "devices/block/block_queue.h"
#include "devices/virtio/queue_handler.h"
#include "devices/virtio/uapi.h"
#include "src/base/error.h"
#include "src/io/reactor.h"

namespace vireo {

class BlockChange {
 public:
  /// What there shall be; what is not there stays as it is.
  struct Wanted {
    std::unique_ptr<Disk> disk;          ///< in the place of the old one
    std::optional<std::uint64_t> bytes;  ///< more than the disk has
    std::optional<RateLimitConfig> rate_limit;
  };
  /// Who serves the device's queues, and who tells its driver; all outlives the change.
  struct Place {
    Reactor* first = nullptr;
    std::vector<Reactor*> queues;  ///< one for each
    VirtioHost* host = nullptr;
  };
  using Done = std::function<void(const Result<>&)>;

  BlockChange(BlockShared& shared, std::vector<std::unique_ptr<BlockQueue>>& queues,
              virtio_blk_config& config);
  BlockChange(const BlockChange&) = delete;
  BlockChange& operator=(const BlockChange&) = delete;
  ~BlockChange() = default;

  /// From begin() until `done` runs.
  bool busy() const { return done_ != nullptr; }
  /// Begins one. Errors: kConfig, with nothing changed, where it cannot be. `done` gets what the
  /// host failed.
  Result<> begin(Wanted wanted, const Place& place, Done done);

 private:
  /// One queue's part.
  struct Part {
    void adopt();
    BlockChange* change = nullptr;
    BlockQueue* queue = nullptr;
    Task task;
  };

  Result<> check(const Wanted& wanted) const;
  void grow();
  void on_grown(DiskOp& op, int errnum);
  void after_growth();
  void adopt();
  void all_adopted();
  void one_finished();
  void all_finished();
  void on_flushed(DiskOp& op, int errnum);
  void let_go();
  void finish(const Result<>& result);

  BlockShared& shared_;
  std::vector<std::unique_ptr<BlockQueue>>& queues_;
  virtio_blk_config& config_;

  Place place_;
  Done done_;
  std::optional<RateLimitConfig> rate_limit_;
  std::unique_ptr<Disk> old_;
  DiskOp op_;
  int errnum_ = 0;
  std::vector<std::unique_ptr<Part>> parts_;
  std::atomic<unsigned> unadopted_ = 0;   // queues that serve the old disk yet
  std::atomic<unsigned> unfinished_ = 0;  // queues with requests on it yet, and one
  Task grow_task_;                        // on the reactor of the first queue
  Task after_growth_task_;
  Task all_adopted_task_;
  Task all_finished_task_;
  Task let_go_task_;
};

}  // namespace vireo
