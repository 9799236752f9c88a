// SPDX-License-Identifier: Apache-2.0
#include "src/io_threads.h"

#include <system_error>
#include <utility>

#include <pthread.h>

#include <fmt/core.h>

namespace vireo {

Result<std::unique_ptr<IoThreads>> IoThreads::create(unsigned count,
                                                     std::span<const std::uint8_t> opcodes) {
  auto threads = std::unique_ptr<IoThreads>(new IoThreads());
  for (unsigned i = 0; i < count; ++i) {
    TRY_ASSIGN(std::unique_ptr<Reactor> reactor,
               Reactor::create({.may_wait = true, .allowed_opcodes = opcodes}));
    threads->pointers_.push_back(reactor.get());
    threads->reactors_.push_back(std::move(reactor));
  }
  return threads;
}

IoThreads::~IoThreads() {
  stop();
}

Result<> IoThreads::start(const std::function<Result<>()>& begins, std::function<void()> failed) {
  failed_ = std::move(failed);
  for (unsigned i = 0; i < reactors_.size(); ++i) {
    try {
      threads_.emplace_back([this, i, &begins] { serve(i, begins); });
    } catch (const std::system_error& error) {
      fail_with(
          Error(ErrorCode::kSystem, fmt::format("starting I/O thread {}: {}", i, error.what())));
      break;
    }
  }
  std::unique_lock lock(mutex_);
  begun_changed_.wait(lock, [this] { return begun_ == threads_.size(); });
  if (failure_) {
    return std::unexpected(*failure_);
  }
  return {};
}

void IoThreads::serve(unsigned index, const std::function<Result<>()>& begins) {
  ::pthread_setname_np(::pthread_self(), fmt::format("vireo-io{}", index).c_str());
  Reactor& reactor = *reactors_[index];
  Result<> served = reactor.start();
  if (served) {
    served = begins();
  }
  if (!served) {
    fail_with(std::move(served).error());
    has_begun();
    return;
  }
  has_begun();
  if (served = reactor.run(); !served) {
    fail_with(std::move(served).error());
    failed_();
  }
  reactor.close();
}

void IoThreads::has_begun() {
  const std::scoped_lock lock(mutex_);
  ++begun_;
  begun_changed_.notify_all();
}

void IoThreads::stop() {
  for (Reactor* const reactor : pointers_) {
    reactor->stop();
  }
  for (std::thread& thread : threads_) {
    thread.join();
  }
  threads_.clear();
}

void IoThreads::fail_with(Error error) {
  const std::scoped_lock lock(mutex_);
  if (!failure_) {
    failure_ = std::move(error);
  }
}

std::optional<Error> IoThreads::failure() {
  const std::scoped_lock lock(mutex_);
  return failure_;
}

}  // namespace vireo
