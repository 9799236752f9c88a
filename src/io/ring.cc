// SPDX-License-Identifier: Apache-2.0
#include "src/io/ring.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <vector>

#include <poll.h>
#include <sys/socket.h>

#include "src/io/uapi.h"

namespace vireo {

namespace {

Error creation_error(int errnum) {
  if (errnum == EPERM || errnum == ENOSYS || errnum == EACCES) {
    return Error::from_errno(errnum,
                             "io_uring is not available to this process (allow it with sysctl "
                             "kernel.io_uring_disabled=0, and in the container's seccomp profile)")
        .with_code(ErrorCode::kSystem);
  }
  return Error::from_errno(errnum, "io_uring_setup");
}

unsigned setup_flags(const RingFeatures& features) {
  unsigned flags = IORING_SETUP_R_DISABLED;
  if (features.single_issuer) {
    flags |= IORING_SETUP_SINGLE_ISSUER;
    if (features.defer_taskrun) {
      flags |= IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    }
  }
  return flags;
}

}  // namespace

Result<> Ring::create(const Config& config) {
  features_ = config.features;
  may_wait_ = config.may_wait;
  for (;;) {
    io_uring_params params = {};
    params.flags = setup_flags(features_);
    const int result = io_uring_queue_init_params(config.entries, &ring_, &params);
    if (result == 0) {
      break;
    }
    // A kernel that does not know a flag says EINVAL: once more without the newest of them.
    if (result == -EINVAL && features_.single_issuer) {
      (features_.defer_taskrun ? features_.defer_taskrun : features_.single_issuer) = false;
      continue;
    }
    return std::unexpected(creation_error(-result));
  }
  created_ = true;
  features_.defer_taskrun = features_.defer_taskrun && features_.single_issuer;
  if (!config.allowed_opcodes.empty()) {
    std::vector<io_uring_restriction> restrictions;
    for (const std::uint8_t opcode : config.allowed_opcodes) {
      io_uring_restriction restriction = {};
      restriction.opcode = IORING_RESTRICTION_SQE_OP;
      restriction.sqe_op = opcode;
      restrictions.push_back(restriction);
    }
    io_uring_restriction registering = {};
    registering.opcode = IORING_RESTRICTION_REGISTER_OP;
    registering.register_op = IORING_REGISTER_RING_FDS;
    restrictions.push_back(registering);
    io_uring_restriction flags = {};
    flags.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    flags.sqe_flags = IOSQE_ASYNC;
    restrictions.push_back(flags);
    const int result = io_uring_register_restrictions(&ring_, restrictions.data(),
                                                      static_cast<unsigned>(restrictions.size()));
    if (result < 0) {
      return fail_errno(-result, "io_uring: restricting its operations");
    }
  }
  return {};
}

Result<> Ring::enable() {
  const int result = io_uring_enable_rings(&ring_);
  if (result < 0) {
    return fail_errno(-result, "io_uring: enabling the ring");
  }
  if (features_.registered_ring) {
    // Per task, hence here; a kernel without it keeps using the descriptor.
    features_.registered_ring = io_uring_register_ring_fd(&ring_) == 1;
  }
  return {};
}

Ring::~Ring() {
  if (created_) {
    CHECK(in_flight_ == 0);
    io_uring_queue_exit(&ring_);
  }
}

io_uring_sqe* Ring::next_sqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe == nullptr) {
    // The submission queue is full: out with it, then there is room.
    const Result<> submitted = submit(false);
    CHECK(submitted.has_value());
    sqe = io_uring_get_sqe(&ring_);
    CHECK(sqe != nullptr);
  }
  return sqe;
}

io_uring_sqe* Ring::begin(Op& op) {
  CHECK(!op.in_flight_ && op.done_ != nullptr);
  io_uring_sqe* const sqe = next_sqe();
  op.in_flight_ = true;
  ++in_flight_;
  return sqe;
}

// The user data is set after each prep call, which clears it in newer liburing and leaves the last
// one's in older: an operation that kept another's would complete that other.

void Ring::prep_read(Op& op, int fd, std::span<std::byte> buffer, std::uint64_t offset) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_read(sqe, fd, buffer.data(), static_cast<unsigned>(buffer.size()), offset);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_write(Op& op, int fd, std::span<const std::byte> buffer, std::uint64_t offset) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_write(sqe, fd, buffer.data(), static_cast<unsigned>(buffer.size()), offset);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_recvmsg(Op& op, int fd, msghdr& message) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_recvmsg(sqe, fd, &message, MSG_CMSG_CLOEXEC);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_write_async(Op& op, int fd, std::span<const std::byte> buffer,
                            std::uint64_t offset) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_write(sqe, fd, buffer.data(), static_cast<unsigned>(buffer.size()), offset);
  io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_readv(Op& op, int fd, std::span<const iovec> pieces, std::uint64_t offset) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_readv(sqe, fd, pieces.data(), static_cast<unsigned>(pieces.size()), offset);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_writev(Op& op, int fd, std::span<const iovec> pieces, std::uint64_t offset) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_writev(sqe, fd, pieces.data(), static_cast<unsigned>(pieces.size()), offset);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_fdatasync(Op& op, int fd) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_fallocate(Op& op, int fd, int mode, std::uint64_t offset, std::uint64_t length) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_fallocate(sqe, fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length));
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_poll(Op& op, int fd, unsigned events) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_poll_add(sqe, fd, events);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_eventfd(Op& op, int fd, std::uint64_t& count) {
  if (!features_.multishot) {
    prep_read(op, fd, std::as_writable_bytes(std::span(&count, 1)), kNoOffset);
    return;
  }
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_poll_multishot(sqe, fd, POLLIN);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_accept(Op& op, int fd) {
  io_uring_sqe* const sqe = begin(op);
  if (features_.multishot) {
    io_uring_prep_multishot_accept(sqe, fd, nullptr, nullptr, SOCK_CLOEXEC);
  } else {
    io_uring_prep_accept(sqe, fd, nullptr, nullptr, SOCK_CLOEXEC);
  }
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::prep_timeout(Op& op, __kernel_timespec& when) {
  io_uring_sqe* const sqe = begin(op);
  io_uring_prep_timeout(sqe, &when, 0, IORING_TIMEOUT_ABS);
  io_uring_sqe_set_data(sqe, &op);
}

void Ring::cancel(Op& op) {
  if (!op.in_flight_) {
    return;
  }
  // The cancellation's own completion carries no Op and is passed over.
  io_uring_sqe* const sqe = next_sqe();
  io_uring_prep_cancel(sqe, &op, 0);
  io_uring_sqe_set_data(sqe, nullptr);
}

Result<> Ring::submit(bool wait) {
  if (!wait && io_uring_sq_ready(&ring_) == 0 && !wants_entry()) {
    return {};  // the kernel has nothing to take and nothing to give
  }
  for (;;) {
    // Entered for events, the kernel also runs the completions that wait as task work.
    const int result =
        wait ? io_uring_submit_and_wait(&ring_, 1) : io_uring_submit_and_get_events(&ring_);
    // EBUSY and EAGAIN: the completion queue must be emptied first, which our caller does next.
    if (result >= 0 || result == -EBUSY || result == -EAGAIN) {
      return {};
    }
    if (result == -EINTR) {
      if (wait) {
        return {};
      }
      continue;
    }
    return fail_errno(-result, "io_uring_enter");
  }
}

bool Ring::wants_entry() const {
  return (std::atomic_ref(*ring_.sq.kflags).load(std::memory_order_relaxed) &
          (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

unsigned Ring::run_completions(unsigned limit) {
  struct Finished {
    Op* op;
    Completion completion;
  };
  // Copied out first: a completion may submit, and with it reap, but never runs inside another.
  std::array<Finished, 64> batch;
  std::array<io_uring_cqe*, 64> cqes = {};
  if (limit > batch.size()) {
    limit = batch.size();
  }
  const unsigned count = io_uring_peek_batch_cqe(&ring_, cqes.data(), limit);
  unsigned finished = 0;
  for (unsigned i = 0; i < count; ++i) {
    auto* const op = static_cast<Op*>(io_uring_cqe_get_data(cqes[i]));
    if (op != nullptr) {
      batch[finished++] = {.op = op,
                           .completion = {.result = cqes[i]->res, .flags = cqes[i]->flags}};
    }
  }
  io_uring_cq_advance(&ring_, count);
  for (unsigned i = 0; i < finished; ++i) {
    Op& op = *batch[i].op;
    if ((batch[i].completion.flags & IORING_CQE_F_MORE) == 0) {
      op.in_flight_ = false;
      --in_flight_;
    }
    op.done_(op, batch[i].completion);
  }
  return count;
}

}  // namespace vireo
