// SPDX-License-Identifier: Apache-2.0
#include "src/io/reactor.h"

#include <algorithm>
#include <cerrno>
#include <span>
#include <utility>

#include "src/base/log.h"

namespace vireo {

namespace {

/// Completions served before tasks get their turn, so that neither starves the other.
constexpr unsigned kBatch = 64;

}  // namespace

Result<std::unique_ptr<Reactor>> Reactor::create(const Ring::Config& config) {
  auto reactor = std::unique_ptr<Reactor>(new Reactor());
  TRY(reactor->ring_.create(config));
  TRY_ASSIGN(reactor->wake_fd_, create_eventfd());
  reactor->wake_op_.bind<Reactor, &Reactor::on_wake>(reactor.get());
  return reactor;
}

Reactor::~Reactor() {
  close();
}

void Reactor::close() {
  closing_ = true;
  ring_.cancel(wake_op_);
  while (wake_op_.in_flight() && turn(true)) {
  }
}

Result<> Reactor::start() {
  TRY(ring_.enable());
  thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  ring_.prep_eventfd(wake_op_, wake_fd_.get(), wake_count_);
  return {};
}

Result<> Reactor::run() {
  while (!stopping_.load(std::memory_order_acquire)) {
    TRY(turn(posted_.load(std::memory_order_acquire) == nullptr));
  }
  return {};
}

/// Serves until `done(n)` says so, n being the Ops in flight for the limit's own sake.
template <typename Done>
bool Reactor::serve_until(Done done, std::uint64_t limit_ns) {
  Timer limit(*this);
  struct Expiry {
    void expire() { expired = true; }
    bool expired = false;
  } expiry;
  limit.bind<Expiry, &Expiry::expire>(&expiry);
  if (limit_ns != kNoLimit) {
    limit.arm(limit_ns);
  }
  const auto finished = [&] { return done(limit.in_flight() ? 1U : 0U); };
  while (!finished() && !expiry.expired &&
         turn(posted_.load(std::memory_order_acquire) == nullptr)) {
  }
  limit.cancel();
  while (limit.in_flight() && turn(true)) {
  }
  return finished();
}

bool Reactor::run_until(const std::function<bool()>& done, std::uint64_t limit_ns) {
  return serve_until([&done](unsigned /*own*/) { return done(); }, limit_ns);
}

bool Reactor::drain(std::uint64_t limit_ns) {
  const auto idle = [this](unsigned own) {
    return ring_.in_flight() - (wake_op_.in_flight() ? 1U : 0U) - own == 0 &&
           posted_.load(std::memory_order_acquire) == nullptr;
  };
  return serve_until(idle, limit_ns);
}

void Reactor::stop() {
  stopping_.store(true, std::memory_order_release);
  signal_eventfd(wake_fd_.get());
}

void Reactor::post(Task& task) {
  if (task.queued_.exchange(true, std::memory_order_acq_rel)) {
    return;
  }
  Task* head = posted_.load(std::memory_order_relaxed);
  do {
    task.next_ = head;
  } while (!posted_.compare_exchange_weak(head, &task, std::memory_order_release,
                                          std::memory_order_relaxed));
  // Whoever finds the list empty wakes the loop; later posters ride on that wake-up. The loop
  // itself is awake, and looks at the list before it sleeps.
  if (head == nullptr && thread_.load(std::memory_order_relaxed) != std::this_thread::get_id()) {
    signal_eventfd(wake_fd_.get());
  }
}

bool Reactor::call_and_wait(Call& call) {
  std::unique_lock lock(calls_mutex_);
  if (refusing_calls_) {
    return false;
  }
  call.reactor_ = this;
  call.finished_ = false;
  post(call.task_);
  calls_changed_.wait(lock, [&] { return call.finished_ || refusing_calls_; });
  return call.finished_;
}

void Reactor::refuse_calls() {
  const std::scoped_lock lock(calls_mutex_);
  refusing_calls_ = true;
  calls_changed_.notify_all();
}

void Call::finish() {
  const std::scoped_lock lock(reactor_->calls_mutex_);
  finished_ = true;
  reactor_->calls_changed_.notify_all();
}

void Reactor::before_sleep(SleepWatcher& watcher) {
  if (!std::exchange(watcher.awaits_sleep_, true)) {
    watchers_.push_back(&watcher);
  }
}

void Reactor::forget(SleepWatcher& watcher) {
  if (std::exchange(watcher.awaits_sleep_, false)) {
    std::erase(watchers_, &watcher);
  }
}

bool Reactor::has_work() const {
  return posted_.load(std::memory_order_acquire) != nullptr || ring_.has_completions();
}

/// Whether nothing is to be done, now that who watches has been asked.
Result<bool> Reactor::may_sleep() {
  if (watchers_.empty()) {
    return true;
  }
  // What was prepared may be done at once; then nobody has to be asked yet.
  TRY(ring_.submit(false));
  std::uint64_t until_ns = 0;
  for (const SleepWatcher* const watcher : watchers_) {
    until_ns = std::max(until_ns, watcher->look_until_ns());
  }
  while (until_ns > 0 && monotonic_ns() < until_ns) {
    if (has_work() || ring_.wants_entry()) {
      return false;
    }
    for (SleepWatcher* const watcher : watchers_) {
      watcher->look_for_work();
    }
  }
  if (has_work()) {
    return false;
  }
  for (SleepWatcher* const watcher : std::exchange(watchers_, {})) {
    watcher->awaits_sleep_ = false;
    watcher->before_sleep();
  }
  return !has_work();
}

Result<> Reactor::turn(bool wait) {
  if (wait) {
    TRY_ASSIGN(wait, may_sleep());
  }
  TRY(ring_.submit(wait));
  ring_.run_completions(kBatch);
  run_tasks();
  return {};
}

void Reactor::run_tasks() {
  Task* stack = posted_.exchange(nullptr, std::memory_order_acquire);
  Task* in_order = nullptr;
  while (stack != nullptr) {
    Task* const next = stack->next_;
    stack->next_ = in_order;
    in_order = std::exchange(stack, next);
  }
  while (in_order != nullptr) {
    Task* const task = std::exchange(in_order, in_order->next_);
    const auto run = task->run_;
    void* const owner = task->owner_;
    // Cleared first: posted again from here on, it runs again; and its owner may end it in run().
    task->queued_.store(false, std::memory_order_release);
    run(owner);
  }
}

void Reactor::on_wake(Op& /*op*/, Completion completion) {
  if (!closing_ && (completion.flags & IORING_CQE_F_MORE) == 0) {
    ring_.prep_eventfd(wake_op_, wake_fd_.get(), wake_count_);
  }
}

void Timer::arm(std::uint64_t after_ns) {
  deadline_ns_ = monotonic_ns() + after_ns;
  armed_ = true;
  if (op_.in_flight()) {
    // Its completion finds the new deadline and goes on from there.
    reactor_.ring().cancel(op_);
    return;
  }
  when_.tv_sec = static_cast<std::int64_t>(deadline_ns_ / 1'000'000'000);
  when_.tv_nsec = static_cast<std::int64_t>(deadline_ns_ % 1'000'000'000);
  reactor_.ring().prep_timeout(op_, when_);
}

void Timer::cancel() {
  armed_ = false;
  reactor_.ring().cancel(op_);
}

void Timer::on_timeout(Op& /*op*/, Completion completion) {
  if (!armed_) {
    return;
  }
  const std::uint64_t now = monotonic_ns();
  if (completion.result != -ETIME && now < deadline_ns_) {
    arm(deadline_ns_ - now);
    return;
  }
  armed_ = false;
  fire_(owner_);
}

}  // namespace vireo
