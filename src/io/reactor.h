// SPDX-License-Identifier: Apache-2.0
// The loop that everything waits in: one io_uring on one thread.
//
// Owned by Machine; nothing finds a reactor except through what it was handed at its activation.
// Every call belongs to the reactor's thread except post(), call_and_wait() and stop(), which any
// other thread may make.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/io/ring.h"

namespace vireo {

/// Work handed to a reactor from another thread; owned by its poster and never moved. Posted again
/// before it ran, it runs once; posted while it runs, it runs again.
class Task {
 public:
  Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  ~Task() { CHECK(!queued_.load(std::memory_order_acquire)); }

  template <typename T, void (T::*Member)()>
  void bind(T* owner) {
    owner_ = owner;
    run_ = [](void* object) { (static_cast<T*>(object)->*Member)(); };
  }

 private:
  friend class Reactor;

  void (*run_)(void*) = nullptr;
  void* owner_ = nullptr;
  std::atomic<bool> queued_ = false;
  Task* next_ = nullptr;
};

class Reactor;

/// A call from another thread that waits for its end, which may come long after the task that
/// began it has run. Owned by its caller, and outlives the reactor's run where that ended first.
class Call {
 public:
  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() = default;

  /// Names what begins it, on the reactor's thread.
  template <typename T, void (T::*Member)()>
  void bind(T* owner) {
    task_.bind<T, Member>(owner);
  }
  /// It is over. Any thread; once for each call.
  void finish();

 private:
  friend class Reactor;

  Task task_;
  Reactor* reactor_ = nullptr;
  bool finished_ = false;  // under the reactor's calls_mutex_
};

/// Somebody who has a last thing to do before a reactor sleeps. Owned by its user; not destroyed
/// while it is awaited.
class SleepWatcher {
 public:
  SleepWatcher() = default;
  SleepWatcher(const SleepWatcher&) = delete;
  SleepWatcher& operator=(const SleepWatcher&) = delete;
  virtual ~SleepWatcher() { CHECK(!awaits_sleep_); }

 protected:
  /// Until when (CLOCK_MONOTONIC, ns) it is worth looking for work instead of sleeping; 0: it is
  /// not.
  virtual std::uint64_t look_until_ns() const = 0;
  /// Posts a task where there is work.
  virtual void look_for_work() = 0;
  /// The reactor is about to sleep. A task that is posted from here keeps it awake.
  virtual void before_sleep() = 0;

 private:
  friend class Reactor;
  bool awaits_sleep_ = false;
};

class Reactor {
 public:
  /// Creates the reactor with its ring disabled. Any thread.
  static Result<std::unique_ptr<Reactor>> create(const Ring::Config& config);
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;
  ~Reactor();

  /// Binds the reactor to the calling thread and enables its ring. Once, before run().
  Result<> start();
  /// Serves completions and tasks until stop(). An error means that io_uring itself failed.
  Result<> run();
  static constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};
  /// Serves completions and tasks until `done` says so. Gives up after `limit_ns` and says false.
  bool run_until(const std::function<bool()>& done, std::uint64_t limit_ns);
  /// Serves completions and tasks until no Op but the reactor's own is in flight and no task waits;
  /// cancelling what would never complete is its owner's part. Gives up after `limit_ns` and says
  /// false.
  bool drain(std::uint64_t limit_ns);

  /// Ends the reactor's own wait. The last call on the reactor's thread, where that is not the one
  /// that destroys it; the destructor does it otherwise.
  void close();

  /// Lets run() return after its present turn. Any thread, and before run() too.
  void stop();
  /// Runs `task` on the reactor's thread. Any thread; never blocks. From the reactor's own, it runs
  /// when the completions that are there have been served, in the same turn of the loop.
  void post(Task& task);
  /// Before the reactor sleeps the next time, `watcher` is asked. Once, unless called again.
  void before_sleep(SleepWatcher& watcher);
  /// Takes that back.
  void forget(SleepWatcher& watcher);
  /// Has `call` begun on the reactor's thread and waits for its end. False where the reactor serves
  /// no calls any more, and then it may have begun or not. Any thread but the reactor's; the caller
  /// holds no lock that the reactor could want.
  bool call_and_wait(Call& call);
  /// No thread waits for this one from here on: those that do return, and so does who calls later.
  void refuse_calls();

  Ring& ring() { return ring_; }

 private:
  friend class Call;
  Reactor() = default;

  template <typename Done>
  bool serve_until(Done done, std::uint64_t limit_ns);
  Result<> turn(bool wait);
  Result<bool> may_sleep();
  bool has_work() const;
  void run_tasks();
  void on_wake(Op& op, Completion completion);

  Ring ring_;
  UniqueFd wake_fd_;
  Op wake_op_;
  std::uint64_t wake_count_ = 0;         // see Ring::prep_eventfd()
  std::atomic<Task*> posted_ = nullptr;  // a stack; run in the order of posting
  std::atomic<bool> stopping_ = false;
  std::atomic<std::thread::id> thread_;  // the one that called start()
  std::vector<SleepWatcher*> watchers_;
  std::mutex calls_mutex_;
  std::condition_variable calls_changed_;
  bool refusing_calls_ = false;
  bool closing_ = false;  // the wake-up is not armed again
};

/// A one-shot timer on a reactor. Owned by its user; destroyed only while not armed.
class Timer {
 public:
  explicit Timer(Reactor& reactor) : reactor_(reactor) {
    op_.bind<Timer, &Timer::on_timeout>(this);
  }

  template <typename T, void (T::*Member)()>
  void bind(T* owner) {
    owner_ = owner;
    fire_ = [](void* object) { (static_cast<T*>(object)->*Member)(); };
  }

  /// Fires `after_ns` nanoseconds from now. Armed already, it takes the new time.
  void arm(std::uint64_t after_ns);
  /// Does not fire any more. Its Op may stay in flight for a moment: see Reactor::drain().
  void cancel();
  bool armed() const { return armed_; }
  /// Whether the kernel still holds the Op, armed or not.
  bool in_flight() const { return op_.in_flight(); }

 private:
  void on_timeout(Op& op, Completion completion);

  Reactor& reactor_;
  void (*fire_)(void*) = nullptr;
  void* owner_ = nullptr;
  Op op_;
  __kernel_timespec when_ = {};
  std::uint64_t deadline_ns_ = 0;
  bool armed_ = false;
};

}  // namespace vireo
