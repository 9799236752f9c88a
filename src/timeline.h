// SPDX-License-Identifier: Apache-2.0
// The boot timeline: when each step was reached, in microseconds from the start of the process,
// with the process's CPU time beside it. Recording is one clock read and a store; any thread.
//
// The process starts, for this, at main(): the kernel offers nothing finer than 10 ms. What exec
// and the loader took before that is the CPU time beside process_start.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

namespace vireo {

enum class Step : std::uint8_t {
  kProcessStart,
  kConfigParsed,
  kKvmReady,
  kMemoryReady,
  kKernelLoaded,
  kDevicesReady,
  kLoad,
  kFirstEntry,
  kReady,
  kEnd,
};

class Timeline {
 public:
  Timeline() { record(Step::kProcessStart); }

  void record(Step step);
  /// Whether record() has been called with `step`. The thread that records it.
  bool reached(Step step) const;
  /// A byte that the guest wrote to the mark port. The first kMarksMax marks are kept.
  void record_mark(std::uint8_t number);

  /// When the process started: CLOCK_MONOTONIC, and CPU time used before, both in ns.
  std::uint64_t start_ns() const { return steps_[0].at_ns; }
  std::uint64_t start_cpu_ns() const { return steps_[0].cpu_ns; }

  /// All that was reached, in order of time, as JSON.
  std::string to_json() const;

 private:
  struct Moment {
    std::uint64_t at_ns = 0;  ///< 0: not reached
    std::uint64_t cpu_ns = 0;
  };
  struct Mark {
    Moment moment;
    std::uint8_t number = 0;
    std::atomic<bool> valid = false;
  };
  static constexpr std::size_t kStepCount = 10;
  static constexpr std::size_t kMarksMax = 256;

  static Moment now();

  std::array<Moment, kStepCount> steps_ = {};
  std::array<Mark, kMarksMax> marks_;
  std::atomic<std::size_t> mark_count_ = 0;
};

}  // namespace vireo
