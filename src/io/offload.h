// SPDX-License-Identifier: Apache-2.0
// A pool of a few threads for calls that block: reading directories, compression, memory images,
// syncing a file. A reactor hands a job over and goes on; the job's end comes back to it by post().
//
// Owned by Machine, declared after its reactors: closed before their last drain(), destroyed before
// them. One pool serves them all. Nothing is allocated for a job: its submitter owns it, as an Op.
//
//   OffloadJob sync_job_;                                                      // a member
//   sync_job_.bind<Disk, &Disk::sync_file, &Disk::on_synced>(this);            // once
//   TRY(offload.submit(reactor, sync_job_));
//
//   Result<> Disk::sync_file();            // on a thread of the pool; may block, but must end
//   void Disk::on_synced(Result<> result); // on the reactor's thread
//
// What the work finds out it leaves in its owner, who does not touch it until the job is done.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "src/base/error.h"
#include "src/io/reactor.h"

namespace vireo {

class Offload;

/// One blocking call, submitted at most once at a time; lives, and does not move, until it is done.
class OffloadJob {
 public:
  OffloadJob() { completion_.bind<OffloadJob, &OffloadJob::complete>(this); }
  OffloadJob(const OffloadJob&) = delete;
  OffloadJob& operator=(const OffloadJob&) = delete;
  ~OffloadJob() { CHECK(!in_flight_); }

  /// Names the function that blocks, the one that gets its result, and the object of both.
  template <typename T, Result<> (T::*Work)(), void (T::*Done)(Result<>)>
  void bind(T* owner) {
    owner_ = owner;
    work_ = [](void* object) { return (static_cast<T*>(object)->*Work)(); };
    done_ = [](void* object, Result<> result) {
      (static_cast<T*>(object)->*Done)(std::move(result));
    };
  }

  /// From submit() until just before its result is delivered. On its reactor's thread.
  bool in_flight() const { return in_flight_; }

 private:
  friend class Offload;

  void complete();

  Result<> (*work_)(void*) = nullptr;
  void (*done_)(void*, Result<>) = nullptr;
  void* owner_ = nullptr;
  Reactor* reactor_ = nullptr;
  OffloadJob* next_ = nullptr;
  Result<> result_;
  Task completion_;
  bool in_flight_ = false;
};

class Offload {
 public:
  struct Limits {
    unsigned threads = 4;
    unsigned queued = 256;  ///< jobs that wait for a thread
  };

  explicit Offload(Limits limits);
  Offload(const Offload&) = delete;
  Offload& operator=(const Offload&) = delete;
  ~Offload();

  /// Starts all its threads now, each of which runs `begins` first, for a process that may start
  /// none later; returns when all have begun, with the first error of theirs. Once, before the
  /// first submit().
  Result<> start(std::function<Result<>()> begins);

  /// Runs `job` on a thread of the pool and delivers its result to `reactor`, on whose thread this
  /// is called. Jobs begin in the order of submission. Refused, with nothing delivered: EAGAIN
  /// where the queue is full or not even one thread is to be had, ECANCELED after close().
  Result<> submit(Reactor& reactor, OffloadJob& job);

  /// Ends the pool: takes no more jobs and waits for those that run. Every job gets exactly one
  /// result, one that had not begun ECANCELED; the reactors deliver them at their next turn or
  /// drain(). Any thread but the pool's.
  void close();

 private:
  Result<> start_thread();
  void thread_main(std::size_t index);

  const Limits limits_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  OffloadJob* first_ = nullptr;
  OffloadJob* last_ = nullptr;
  unsigned queued_ = 0;
  unsigned idle_ = 0;  // threads that wait for a job
  bool closed_ = false;
  std::function<Result<>()> begins_;
  std::size_t begun_ = 0;  // threads
  std::optional<Error> begin_error_;
  std::vector<std::thread> threads_;
};

}  // namespace vireo
