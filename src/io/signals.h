// SPDX-License-Identifier: Apache-2.0
// Signals as completions: a set of signals is blocked in every thread and read from a signalfd.
#pragma once

#include <csignal>
#include <span>

#include <sys/signalfd.h>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/io/reactor.h"

namespace vireo {

/// Blocks `signals` in the calling thread, which is the only one yet, so that all later ones
/// inherit it. What arrives waits for a SignalWatch.
Result<> block_signals(std::span<const int> signals);

class SignalWatch {
 public:
  explicit SignalWatch(Reactor& reactor);
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;
  ~SignalWatch() = default;

  /// Takes `signals`, blocking them. Main thread, before any other starts.
  Result<> open(std::span<const int> signals);
  /// Begins to deliver: `Member` runs on the reactor's thread with each signal's number.
  template <typename T, void (T::*Member)(int)>
  void start(T* owner) {
    owner_ = owner;
    deliver_ = [](void* object, int signal) { (static_cast<T*>(object)->*Member)(signal); };
    arm();
  }
  /// Ends delivery; its Op is gone after the reactor's next drain().
  void stop();

 private:
  void arm();
  void on_read(Op& op, Completion completion);

  Reactor& reactor_;
  UniqueFd fd_;
  Op op_;
  signalfd_siginfo info_ = {};
  void (*deliver_)(void*, int) = nullptr;
  void* owner_ = nullptr;
  bool stopped_ = false;
};

}  // namespace vireo
