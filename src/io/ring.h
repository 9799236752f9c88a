// SPDX-License-Identifier: Apache-2.0
// One io_uring and the operations on it. Owned by a Reactor, used on its thread only.
//
// The caller owns each Op and every buffer that it names; both live, and do not move, until the
// Op's completion has run, cancelled or not. The ring only links them, so an operation allocates
// nothing.
//
//   Op write_op_;                                        // a member of its owner
//   write_op_.bind<Console, &Console::on_written>(this); // once
//   ring.prep_write(write_op_, fd, bytes, kNoOffset);    // goes out at the next turn of the loop
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <liburing.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "src/base/error.h"

namespace vireo {

/// What a completion says: the system call's result or -errno, and the CQE's flags
/// (IORING_CQE_F_MORE: a multishot operation that stays armed).
struct Completion {
  std::int32_t result = 0;
  std::uint32_t flags = 0;
};

/// One operation, in flight at most once at a time.
class Op {
 public:
  using Done = void (*)(Op&, Completion);

  Op() = default;
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;
  ~Op() { CHECK(!in_flight_); }

  /// Names the member function that completions call, and the object it is called on.
  template <typename T, void (T::*Member)(Op&, Completion)>
  void bind(T* owner) {
    owner_ = owner;
    done_ = [](Op& op, Completion completion) {
      (static_cast<T*>(op.owner_)->*Member)(op, completion);
    };
  }

  /// From prep_*() until just before the completion runs (multishot: the last one).
  bool in_flight() const { return in_flight_; }

 private:
  friend class Ring;

  Done done_ = nullptr;
  void* owner_ = nullptr;
  bool in_flight_ = false;
};

/// Parts of io_uring that newer kernels have. Each has a fallback; tests switch them off in turn.
struct RingFeatures {
  bool single_issuer = true;  ///< Linux 6.0
  bool defer_taskrun = true;  ///< Linux 6.1, needs single_issuer
  bool registered_ring =
      true;               ///< Linux 5.18: the ring by index, without a lookup of its descriptor
  bool multishot = true;  ///< Linux 5.19: accept and poll that stay armed
};

class Ring {
 public:
  /// Offset of an operation on what has no position (a pipe, a socket), or at the file's own.
  static constexpr std::uint64_t kNoOffset = ~std::uint64_t{0};

  struct Config {
    unsigned entries = 64;  ///< a power of two
    RingFeatures features;
    /// Its thread serves nothing that could not wait for a while: see Ring::may_wait().
    bool may_wait = false;
    /// The opcodes (IORING_OP_…) that may ever be submitted; empty: all.
    std::span<const std::uint8_t> allowed_opcodes;
  };

  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring();

  /// Creates the ring, disabled. Where io_uring is forbidden the error says what would allow it.
  Result<> create(const Config& config);
  /// Enables it. From here on it belongs to the calling thread (IORING_SETUP_SINGLE_ISSUER).
  Result<> enable();

  /// Whether a completion may make a call that, once in a while, waits: the thread has nothing to
  /// do but what is on this ring. Never the main thread.
  bool may_wait() const { return may_wait_; }

  /// What create() got of the features that were asked for.
  const RingFeatures& features() const { return features_; }

  void prep_read(Op& op, int fd, std::span<std::byte> buffer, std::uint64_t offset);
  void prep_write(Op& op, int fd, std::span<const std::byte> buffer, std::uint64_t offset);
  /// recvmsg(2); `message` and all that it names live until the completion. What comes with it is
  /// close-on-exec.
  void prep_recvmsg(Op& op, int fd, msghdr& message);
  /// The same on a thread of the kernel's, always: for a terminal, which io_uring would write to at
  /// once where it is ready, however much more than fits that is, and wait in submit().
  void prep_write_async(Op& op, int fd, std::span<const std::byte> buffer, std::uint64_t offset);
  /// Scattered and gathered; `pieces` stay until the completion, at most IOV_MAX of them.
  void prep_readv(Op& op, int fd, std::span<const iovec> pieces, std::uint64_t offset);
  void prep_writev(Op& op, int fd, std::span<const iovec> pieces, std::uint64_t offset);
  /// fdatasync(2).
  void prep_fdatasync(Op& op, int fd);
  /// fallocate(2).
  void prep_fallocate(Op& op, int fd, int mode, std::uint64_t offset, std::uint64_t length);
  /// Becomes ready once; `events` are POLLIN, ….
  void prep_poll(Op& op, int fd, unsigned events);
  /// Completes each time that the eventfd is counted up: where multishot is to be had until it is
  /// cancelled, and the count grows on; else once, having taken the count into `count`. Rearm it
  /// when the completion lacks IORING_CQE_F_MORE.
  void prep_eventfd(Op& op, int fd, std::uint64_t& count);
  /// Accepts connections, close-on-exec, until it fails or is cancelled where multishot is to be
  /// had, else one: rearm it when the completion lacks IORING_CQE_F_MORE.
  void prep_accept(Op& op, int fd);
  /// Completes with -ETIME at `when` (CLOCK_MONOTONIC), which lives as long as the Op is in flight.
  void prep_timeout(Op& op, __kernel_timespec& when);
  /// Asks for the early end of `op`, whose completion still comes (mostly with -ECANCELED).
  void cancel(Op& op);

  /// Operations in flight, cancelled ones included until their completion.
  unsigned in_flight() const { return in_flight_; }

  /// Submits what was prepared and, if `wait`, sleeps until a completion is there.
  Result<> submit(bool wait);
  /// Whether run_completions() would find some now.
  bool has_completions() const { return io_uring_cq_ready(&ring_) > 0; }
  /// Whether it may find some after submit(). A hint: the kernel may leave it set for nothing.
  bool wants_entry() const;
  /// Runs the completions that are there, at most `limit`; returns how many.
  unsigned run_completions(unsigned limit);

 private:
  io_uring_sqe* next_sqe();
  io_uring_sqe* begin(Op& op);

  io_uring ring_ = {};
  bool created_ = false;
  bool may_wait_ = false;
  RingFeatures features_;
  unsigned in_flight_ = 0;
};

}  // namespace vireo
