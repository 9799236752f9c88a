// SPDX-License-Identifier: Apache-2.0
// What the exits of one vCPU cost: count and time by reason and by port, register or MSR.
//
// One object for each vCPU, written by its thread and read by any; made only when somebody can ask
// (a profile, a control socket), so that otherwise an exit costs one test of a null pointer.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace vireo {

struct ExitRecord {
  std::uint32_t phase = 0;   ///< guest marks seen before it
  std::uint32_t reason = 0;  ///< KVM_EXIT_…
  bool write = false;        ///< port, MMIO and MSR exits: direction
  std::uint64_t detail = 0;  ///< port, guest-physical address or MSR; 0 for the rest
  std::uint64_t count = 0;
  std::uint64_t handling_ns = 0;  ///< from the exit until the next entry, in vireo
};

class ExitStats {
 public:
  /// Adds one exit. A guest that touches more distinct places than the table holds finds the rest
  /// summed up under its reason with detail kOther.
  void add(std::uint32_t phase, std::uint32_t reason, bool write, std::uint64_t detail,
           std::uint64_t handling_ns);
  /// Time spent inside KVM_RUN: the guest itself, and what KVM does for it.
  void add_run(std::uint64_t ns) { run_ns_.fetch_add(ns, std::memory_order_relaxed); }

  static constexpr std::uint64_t kOther = ~std::uint64_t{0};

  std::uint64_t run_ns() const { return run_ns_.load(std::memory_order_relaxed); }
  /// The used records, in no order.
  std::vector<ExitRecord> records() const;

 private:
  static constexpr std::size_t kSlots = 1024;  // a power of two

  mutable std::mutex mutex_;
  std::array<ExitRecord, kSlots> table_{};  // open addressing; count 0 marks a free slot
  std::size_t used_ = 0;
  std::atomic<std::uint64_t> run_ns_ = 0;
};

}  // namespace vireo
