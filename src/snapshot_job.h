// SPDX-License-Identifier: Apache-2.0
// One snapshot on its way into its file: precopy(), while the machine runs; capture(), while it
// stands still; then it may go on, and finish() makes the file whole.
//
// On the reactor's thread; what takes long is done by the pool. It does not end before either.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "arch/arch.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/change_log.h"
#include "src/device_set.h"
#include "src/disk_checkpoint.h"
#include "src/io/offload.h"
#include "src/kvm/vm.h"
#include "src/memory/guest_memory.h"
#include "src/memory_save.h"
#include "src/saved_machine.h"
#include "src/snapshot/snapshot.h"
#include "src/snapshot/snapshot_file.h"

namespace vireo {

class SnapshotJob {
 public:
  /// Of the machine; all of it outlives the job.
  struct Context {
    const KvmVm& vm;
    std::span<const int> vcpu_fds;
    const arch::CpuModel& cpu_model;
    const GuestMemory& memory;
    ChangeLog& changes;
    DeviceSet& devices;
    Reactor& reactor;
    Offload& offload;
    int pagemap;  ///< /proc/self/pagemap, or -1
  };
  using Done = std::function<void(Result<>)>;

  /// Which pages a snapshot has.
  enum class Pages : std::uint8_t {
    kAll,      ///< a full one
    kLogged,   ///< a diff: what the log has, which has gone on since the parent
    kPrivate,  ///< a diff: what is no more the file's that memory was mapped from
  };
  struct Kind {
    Pages pages = Pages::kAll;
    SnapshotUuid parent = {};
    bool keep_log = false;  ///< the log goes on behind it, for the next diff
  };

  /// `file` is an empty one, open for writing.
  static Result<std::unique_ptr<SnapshotJob>> create(const Context& context, UniqueFd file,
                                                     DiskCheckpoint disks, const Kind& kind);
  SnapshotJob(const SnapshotJob&) = delete;
  SnapshotJob& operator=(const SnapshotJob&) = delete;
  ~SnapshotJob();

  /// How far precopy() goes: until so few pages change during a round, or that many rounds were
  /// made.
  struct PrecopyLimits {
    static constexpr unsigned kRounds = 8;
    static constexpr std::uint64_t kBytes = std::uint64_t{4} << 20;
    /// What is done where the guest changes more than that each time.
    enum class Over : std::uint8_t {
      kPause,   ///< the rest is left to capture(), however much it is
      kWait,    ///< there are more rounds, until it changes less
      kRefuse,  ///< kConfig
    };
    unsigned rounds = kRounds;
    std::uint64_t bytes = kBytes;
    Over over = Over::kPause;
  };
  /// Takes memory while the machine runs; what changes meanwhile is left to capture(). Not needed.
  void precopy(const PrecopyLimits& limits, Done done);
  /// While vCPUs and devices stand still, until `done`. `machine` is as it is.
  void capture(SavedMachine machine, Done done);
  /// The disks; behind capture() they are as the snapshot has them.
  DiskCheckpoint& disks() { return disks_; }
  /// When that has succeeded. The file is on its disk at the end.
  void finish(Done done);

  const SnapshotFacts& facts() const { return facts_; }
  /// Bytes of guest memory in the file.
  std::uint64_t data_bytes() const { return data_bytes_; }

 private:
  SnapshotJob(const Context& context, UniqueFd file, DiskCheckpoint disks, const Kind& kind);

  void begin(OffloadJob& job, void (SnapshotJob::*refused)(Result<>));
  Result<> see_to_disks();
  void on_disks(Result<> result);
  Result<> save_state();
  Result<> collect();
  void on_collected(Result<> result);
  bool over_limits(Result<>& result);
  void on_round(Result<> result);
  void end_step(Result<> result);
  Result<> write_file();
  void on_file_written(Result<> result);

  const Context context_;
  UniqueFd file_;
  DiskCheckpoint disks_;
  SavedMachine machine_;
  SavedDisks saved_disks_;
  const Kind kind_;
  SnapshotFacts facts_;
  SnapshotWriter writer_;
  std::uint64_t memory_offset_ = 0;
  std::uint64_t data_bytes_ = 0;
  std::unique_ptr<MemorySave> memory_;
  PageSet pages_;  // of the round
  PrecopyLimits limits_;
  unsigned rounds_ = 0;
  bool capturing_ = false;
  bool left_ = false;  // pages_ is still to be written
  bool logs_ = false;  // what changes meanwhile, or behind it, is of use
  bool captured_ = false;
  PageSet changed_;  // what was taken from the log
  OffloadJob disks_job_;
  OffloadJob collect_job_;
  OffloadJob file_job_;
  Done done_;
};

}  // namespace vireo
