// SPDX-License-Identifier: Apache-2.0
// The threads of machine.io_threads: each has a reactor that serves queues of devices.
//
// Owned by Machine. Made, started and stopped on the main thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "src/base/error.h"
#include "src/io/reactor.h"

namespace vireo {

class IoThreads {
 public:
  static Result<std::unique_ptr<IoThreads>> create(unsigned count,
                                                   std::span<const std::uint8_t> opcodes);
  IoThreads(const IoThreads&) = delete;
  IoThreads& operator=(const IoThreads&) = delete;
  /// Stops them.
  ~IoThreads();

  std::span<Reactor* const> reactors() const { return pointers_; }

  /// Starts the threads, each of which runs `begins` first; returns when all serve. `failed` runs
  /// on the thread whose io_uring has failed.
  Result<> start(const std::function<Result<>()>& begins, std::function<void()> failed);
  /// Ends them. When nothing is in flight on them.
  void stop();
  /// What made one of them fail.
  std::optional<Error> failure();

 private:
  IoThreads() = default;

  void serve(unsigned index, const std::function<Result<>()>& begins);
  void has_begun();
  void fail_with(Error error);

  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<Reactor*> pointers_;
  std::vector<std::thread> threads_;
  std::function<void()> failed_;
  std::mutex mutex_;
  std::condition_variable begun_changed_;
  std::size_t begun_ = 0;  // threads that serve, or have failed to
  std::optional<Error> failure_;
};

}  // namespace vireo
