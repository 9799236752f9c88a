// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/queue_handler.h"

#include <algorithm>
#include <utility>

#include "src/base/log.h"

namespace vireo {

QueueHandler::QueueHandler() {
  kick_op_.bind<QueueHandler, &QueueHandler::on_kick>(this);
  tokens_op_.bind<QueueHandler, &QueueHandler::on_tokens>(this);
  run_task_.bind<QueueHandler, &QueueHandler::run>(this);
}

void QueueHandler::start(const Context& context) {
  CHECK(!running());
  context_ = context;
  reactor().ring().prep_eventfd(kick_op_, context_.kick_fd, kicks_);
  serve_again();
}

void QueueHandler::stop(Task& stopped) {
  CHECK(running() && stopped_ == nullptr);
  stopped_ = &stopped;
  reactor().forget(*this);
  reactor().ring().cancel(kick_op_);
  reactor().ring().cancel(tokens_op_);
  finish_stop();
}

void QueueHandler::on_kick(Op& /*op*/, Completion completion) {
  if (stopped_ != nullptr) {
    finish_stop();
    return;
  }
  CHECK(completion.result > 0);
  if ((completion.flags & IORING_CQE_F_MORE) == 0) {
    reactor().ring().prep_eventfd(kick_op_, context_.kick_fd, kicks_);
  }
  serve_again();
}

void QueueHandler::serve_again() {
  if (!std::exchange(run_pending_, true)) {
    reactor().post(run_task_);
  }
}

void QueueHandler::run() {
  run_pending_ = false;
  Served served = Served::kBlocked;
  // A notification may still come while tokens are waited for.
  if (stopped_ == nullptr && !tokens_op_.in_flight()) {
    queue().disarm();
    serving_ = true;
    served = serve();
    serving_ = false;
  }
  queue().publish();
  if (queue().needs_interrupt()) {
    context_.interrupts->raise_queue(context_.index);
  }
  if (stopped_ != nullptr) {
    finish_stop();
  } else if (queue().broken()) {
    context_.host->needs_reset();
  } else if (served == Served::kSome) {
    serve_again();
  } else if (served == Served::kAll) {
    found_empty();
  }
}

void QueueHandler::found_empty() {
  look_until_ns_ = 0;
  if (queue().outstanding() == 0) {
    if (not_looking_ > 0) {
      --not_looking_;
    } else {
      look_until_ns_ = monotonic_ns() + kLookNs;
    }
  }
  reactor().before_sleep(*this);
}

void QueueHandler::look_for_work() {
  if (look_until_ns_ != 0 && queue().has_more()) {
    look_until_ns_ = 0;
    misses_ = 0;
    serve_again();
  }
}

void QueueHandler::before_sleep() {
  if (look_until_ns_ != 0) {
    constexpr std::uint32_t kMissesMax = 1024;
    misses_ = std::clamp(2 * misses_, std::uint32_t{1}, kMissesMax);
    not_looking_ = misses_;
  }
  if (queue().rearm()) {
    serve_again();
  }
}

void QueueHandler::give_back(DescriptorChain chain, std::uint32_t written) {
  queue().push_used(std::move(chain), written);
  if (!serving_) {
    serve_again();
  }
}

bool QueueHandler::admit(RateLimiter& limiter, std::uint64_t bytes) {
  const std::uint64_t now_ns = monotonic_ns();
  const std::uint64_t wait_ns = limiter.take(bytes, now_ns);
  if (wait_ns == 0) {
    return true;
  }
  const std::uint64_t when_ns = now_ns + wait_ns;
  tokens_when_ = {.tv_sec = static_cast<std::int64_t>(when_ns / 1'000'000'000),
                  .tv_nsec = static_cast<std::int64_t>(when_ns % 1'000'000'000)};
  reactor().ring().prep_timeout(tokens_op_, tokens_when_);
  return false;
}

void QueueHandler::retry() {
  if (tokens_op_.in_flight()) {
    reactor().ring().cancel(tokens_op_);
  }
}

void QueueHandler::on_tokens(Op& /*op*/, Completion /*completion*/) {
  if (stopped_ != nullptr) {
    finish_stop();
  } else {
    serve_again();
  }
}

void QueueHandler::finish_stop() {
  if (stopped_ == nullptr || kick_op_.in_flight() || tokens_op_.in_flight() || run_pending_ ||
      queue().outstanding() > 0) {
    return;
  }
  Reactor& reactor = *context_.reactor;
  context_ = {};
  reactor.post(*std::exchange(stopped_, nullptr));
}

}  // namespace vireo
