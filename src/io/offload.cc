// SPDX-License-Identifier: Apache-2.0
#include "src/io/offload.h"

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include <pthread.h>

#include <fmt/core.h>

namespace vireo {

namespace {

/// As many as a name of 15 bytes can number.
constexpr unsigned kThreadsMax = 100;

}  // namespace

void OffloadJob::complete() {
  // First free, then told: the owner may submit it again, or end it.
  in_flight_ = false;
  done_(owner_, std::move(result_));
}

Offload::Offload(Limits limits) : limits_(limits) {
  CHECK(limits.threads > 0 && limits.threads <= kThreadsMax && limits.queued > 0);
}

Offload::~Offload() {
  close();
}

Result<> Offload::start(std::function<Result<>()> begins) {
  std::unique_lock lock(mutex_);
  CHECK(threads_.empty());
  begins_ = std::move(begins);
  while (threads_.size() < limits_.threads) {
    TRY(start_thread());
  }
  changed_.wait(lock, [this] { return begun_ == threads_.size(); });
  return begin_error_ ? Result<>(std::unexpected(*begin_error_)) : Result<>();
}

Result<> Offload::submit(Reactor& reactor, OffloadJob& job) {
  CHECK(!job.in_flight_ && job.work_ != nullptr);
  const std::scoped_lock lock(mutex_);
  if (closed_) {
    return fail_errno(ECANCELED, "offload");
  }
  if (queued_ >= limits_.queued) {
    return fail_errno(EAGAIN, "offload: too many jobs wait");
  }
  // A thread that was woken for an earlier job is counted idle until it has taken it.
  if (queued_ >= idle_ && threads_.size() < limits_.threads) {
    Result<> started = start_thread();
    // With fewer threads than we would like it goes on, with none it cannot.
    if (!started && threads_.empty()) {
      return started;
    }
  }
  job.reactor_ = &reactor;
  job.next_ = nullptr;
  job.in_flight_ = true;
  (last_ == nullptr ? first_ : last_->next_) = &job;
  last_ = &job;
  ++queued_;
  changed_.notify_one();
  return {};
}

void Offload::close() {
  {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    while (first_ != nullptr) {
      OffloadJob& job = *std::exchange(first_, first_->next_);
      job.result_ = fail_errno(ECANCELED, "offload");
      // Nothing of the job is touched after this: its reactor may have ended it.
      job.reactor_->post(job.completion_);
    }
    changed_.notify_all();
  }
  // No thread is added any more.
  for (std::thread& thread : threads_) {
    if (thread.joinable()) {
      thread.join();
    }
  }
}

/// With mutex_ held.
Result<> Offload::start_thread() {
  try {
    threads_.emplace_back(&Offload::thread_main, this, threads_.size());
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "offload: starting a thread");
  }
  // As good as waiting: it takes a job as soon as it runs.
  ++idle_;
  return {};
}

void Offload::thread_main(std::size_t index) {
  const std::string name = fmt::format("vireo-offload{}", index);
  ::pthread_setname_np(::pthread_self(), name.c_str());
  Result<> begun = begins_ ? begins_() : Result<>();
  std::unique_lock lock(mutex_);
  ++begun_;
  if (!begun && !begin_error_) {
    begin_error_ = std::move(begun).error();
  }
  changed_.notify_all();
  for (;;) {
    changed_.wait(lock, [this] { return first_ != nullptr || closed_; });
    if (first_ == nullptr) {
      return;
    }
    OffloadJob& job = *std::exchange(first_, first_->next_);
    if (first_ == nullptr) {
      last_ = nullptr;
    }
    --queued_;
    --idle_;
    lock.unlock();
    job.result_ = job.work_(job.owner_);
    job.reactor_->post(job.completion_);
    lock.lock();
    ++idle_;
  }
}

}  // namespace vireo
