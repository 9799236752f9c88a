// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/queue_handler.h"

#include <utility>

namespace vireo {

QueueHandler::QueueHandler() {
  kick_op_.bind<QueueHandler, &QueueHandler::on_kick>(this);
  run_task_.bind<QueueHandler, &QueueHandler::run>(this);
  flush_task_.bind<QueueHandler, &QueueHandler::flush>(this);
}

void QueueHandler::start(const Context& context) {
  CHECK(!running());
  context_ = context;
  reactor().ring().prep_read(kick_op_, context_.kick_fd,
                             std::as_writable_bytes(std::span(&kicks_, 1)), Ring::kNoOffset);
  serve_again();
}

void QueueHandler::stop(Task& stopped) {
  CHECK(running() && stopped_ == nullptr);
  stopped_ = &stopped;
  reactor().ring().cancel(kick_op_);
  cancel_waits();
  finish_stop();
}

void QueueHandler::on_kick(Op& /*op*/, Completion completion) {
  if (stopped_ != nullptr) {
    finish_stop();
    return;
  }
  CHECK(completion.result == sizeof(kicks_));
  reactor().ring().prep_read(kick_op_, context_.kick_fd,
                             std::as_writable_bytes(std::span(&kicks_, 1)), Ring::kNoOffset);
  run();
}

void QueueHandler::serve_again() {
  if (!std::exchange(run_pending_, true)) {
    reactor().post(run_task_);
  }
}

void QueueHandler::run() {
  run_pending_ = false;
  if (stopped_ != nullptr) {
    finish_stop();
    return;
  }
  queue().disarm();
  const Served served = serve();
  tell_driver();
  if (queue().broken()) {
    host().needs_reset();
  } else if (served == Served::kSome || (served == Served::kAll && queue().rearm())) {
    serve_again();
  }
}

void QueueHandler::chain_returned() {
  if (!std::exchange(flush_pending_, true)) {
    reactor().post(flush_task_);
  }
}

void QueueHandler::flush() {
  flush_pending_ = false;
  tell_driver();
  finish_stop();
}

void QueueHandler::tell_driver() {
  queue().publish();
  if (queue().needs_interrupt()) {
    context_.interrupts->raise_queue(context_.index);
  }
}

void QueueHandler::finish_stop() {
  if (stopped_ == nullptr || kick_op_.in_flight() || flush_pending_ || run_pending_ || waits() ||
      queue().outstanding() > 0) {
    return;
  }
  Reactor& reactor = *context_.reactor;
  context_ = {};
  reactor.post(*std::exchange(stopped_, nullptr));
}

}  // namespace vireo
