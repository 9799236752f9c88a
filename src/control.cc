// SPDX-License-Identifier: Apache-2.0
#include "src/control.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <poll.h>
#include <sys/socket.h>

#include <fmt/core.h>

#include "src/base/log.h"

namespace vireo {

namespace {

constexpr std::uint64_t kRetryNs = 100'000'000;
/// How long the machine's end waits for clients to take their last answers.
constexpr std::uint64_t kFinishNs = 200'000'000;
/// Whoever may write to the socket may end the VM.
constexpr mode_t kSocketMode = 0600;

}  // namespace

// One client
// -----------------------------------------------------------------------------------------

ControlConnection::ControlConnection(Control& control, Machine& machine, UniqueFd socket,
                                     std::uint64_t id)
    : control_(control),
      machine_(machine),
      socket_(std::move(socket)),
      id_(id),
      patience_(machine.reactor()) {
  read_op_.bind<ControlConnection, &ControlConnection::on_read>(this);
  write_op_.bind<ControlConnection, &ControlConnection::on_written>(this);
  patience_.bind<ControlConnection, &ControlConnection::on_impatience>(this);
  read();
}

ControlConnection::~ControlConnection() {
  machine_.events().remove(*this);
}

bool ControlConnection::gone() const {
  return !socket_ && !read_op_.in_flight() && !write_op_.in_flight() && !patience_.in_flight();
}

void ControlConnection::read() {
  if (socket_ && !read_op_.in_flight() && !input_over_ && input_begin_ == input_end_) {
    input_room_ = {.iov_base = input_.data(), .iov_len = input_.size()};
    message_ = {.msg_iov = &input_room_, .msg_iovlen = 1};
    ancillary_.receive_with(message_);
    machine_.reactor().ring().prep_recvmsg(read_op_, socket_.get(), message_);
  }
}

void ControlConnection::on_read(Op& /*op*/, Completion completion) {
  if (completion.result > 0) {
    for (UniqueFd& file : AncillaryFiles::take(message_)) {
      files_.push_back(std::move(file));
    }
    if (files_.size() > AncillaryFiles::kMax) {
      files_.clear();  // no request has so many; that it misses them is its answer
    }
  }
  if (!socket_) {
    control_.collect_later();
    return;
  }
  if (completion.result > 0) {
    input_begin_ = 0;
    input_end_ = static_cast<std::size_t>(completion.result);
  } else if (completion.result != -EINTR) {
    input_over_ = true;  // half-closed: what was asked is still answered
  }
  serve();
}

/// Goes on with the input, one request at a time: a client that does not take answers is not read.
void ControlConnection::serve() {
  while (!answering_ && !streaming_ && output_.empty() && keep_alive_ &&
         input_begin_ < input_end_) {
    const auto rest = std::span(input_).subspan(input_begin_, input_end_ - input_begin_);
    input_begin_ += parser_.feed(rest);
    if (parser_.error() != 0) {
      keep_alive_ = false;
      reply(control_error(parser_.error(), "not an HTTP request that this socket takes"));
      return;
    }
    if (parser_.complete()) {
      HttpRequest request = parser_.take();
      request.files = std::exchange(files_, {});
      keep_alive_ = request.keep_alive;
      answering_ = true;
      patience_.cancel();
      answer_control(machine_, request, [&control = control_, id = id_](const ControlReply& reply) {
        control.answered(id, reply);
      });
    }
  }
  if (streaming_) {
    input_begin_ = input_end_;  // whatever a listener says
  }
  if (parser_.begun() && !patience_.armed()) {
    patience_.arm(kPatienceNs);
  }
  const bool idle = !answering_ && output_.empty();
  if (idle && (!keep_alive_ || input_over_)) {
    close();
  } else {
    read();
  }
}

void ControlConnection::reply(const ControlReply& reply) {
  answering_ = false;
  if (!socket_) {
    return;
  }
  if (reply.stream) {
    streaming_ = true;
    machine_.events().add(*this);
    send(http_stream_head(reply.content_type) + http_chunk(reply.body));
  } else {
    send(http_response(reply.status, reply.content_type, reply.body, keep_alive_ && !finishing_,
                       reply.allow));
  }
}

void ControlConnection::event(std::string_view line) {
  if (!socket_ || !streaming_) {
    return;
  }
  if (output_.size() - written_ + waiting_.size() + line.size() > kStreamMax) {
    ++lost_events_;
    return;
  }
  if (lost_events_ > 0) {
    send(http_chunk(machine_.events().line(
        "lost", fmt::format("{} events were not taken in time", std::exchange(lost_events_, 0)))));
  }
  send(http_chunk(line));
}

void ControlConnection::send(std::string_view text) {
  waiting_ += text;
  if (!write_op_.in_flight()) {
    write();
  }
}

void ControlConnection::write() {
  if (written_ == output_.size()) {
    output_ = std::exchange(waiting_, {});
    written_ = 0;
  }
  if (!socket_ || output_.empty()) {
    return;
  }
  // A listener may take its time; an answer shall be taken.
  if (!streaming_ && !patience_.armed()) {
    patience_.arm(kPatienceNs);
  }
  machine_.reactor().ring().prep_write(write_op_, socket_.get(),
                                       std::as_bytes(std::span(output_)).subspan(written_),
                                       Ring::kNoOffset);
}

void ControlConnection::on_written(Op& /*op*/, Completion completion) {
  if (!socket_) {
    control_.collect_later();
    return;
  }
  if (completion.result < 0 && completion.result != -EINTR) {
    close();
    return;
  }
  written_ += static_cast<std::size_t>(std::max(completion.result, 0));
  write();
  if (output_.empty()) {
    if (!streaming_) {
      patience_.cancel();
    }
    if (finishing_) {
      close();
    } else {
      serve();
    }
  }
}

void ControlConnection::finish() {
  finishing_ = true;
  if (!socket_) {
    return;
  }
  if (streaming_) {
    streaming_ = false;
    send(kHttpLastChunk);
  }
  machine_.reactor().ring().cancel(read_op_);
  if (output_.empty()) {
    close();
  }
}

void ControlConnection::close() {
  if (!socket_) {
    return;
  }
  machine_.events().remove(*this);
  patience_.cancel();
  machine_.reactor().ring().cancel(read_op_);
  machine_.reactor().ring().cancel(write_op_);
  if (finishing_) {
    control_.keep(std::move(socket_));
  } else {
    // Operations in flight keep the file; it is the client that shall see the end now.
    ::shutdown(socket_.get(), SHUT_RDWR);
    socket_.reset();
  }
  control_.collect_later();
}

// All of them
// ----------------------------------------------------------------------------------------

Result<UnixListener> Control::listen(const std::string& path) {
  return UnixListener::open(path, "control.path", kSocketMode);
}

Control::Control(Machine& machine, UnixListener listener)
    : machine_(machine), listener_(std::move(listener)), accept_timer_(machine.reactor()) {
  accept_op_.bind<Control, &Control::on_accept>(this);
  accept_timer_.bind<Control, &Control::accept>(this);
  collect_task_.bind<Control, &Control::collect>(this);
}

void Control::start() {
  accept();
}

void Control::accept() {
  machine_.reactor().ring().prep_accept(accept_op_, listener_.fd());
}

void Control::on_accept(Op& /*op*/, Completion completion) {
  const bool waited = std::exchange(accept_waits_, false);
  if (completion.result >= 0 && !waited) {
    UniqueFd socket(completion.result);
    collect();  // one whose last operation ended after it had asked for this holds no place
    const auto free =
        std::ranges::find_if(clients_, [](const auto& client) { return client == nullptr; });
    if (free != clients_.end()) {
      *free = std::make_unique<ControlConnection>(*this, machine_, std::move(socket), next_id_++);
    } else {
      const std::string text =
          http_response(503, "application/json",
                        control_error(503, "too many clients of this socket").body, false);
      ::send(socket.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    }
  }
  if (accept_op_.in_flight() || finishing_) {
    return;
  }
  if (completion.result >= 0 || completion.result == -ECONNABORTED) {
    accept();
  } else if (completion.result == -EAGAIN) {
    accept_waits_ = true;
    machine_.reactor().ring().prep_poll(accept_op_, listener_.fd(), POLLIN);
  } else {
    accept_timer_.arm(kRetryNs);  // no descriptor is free, perhaps
  }
}

void Control::answered(std::uint64_t id, const ControlReply& reply) {
  for (const auto& client : clients_) {
    if (client && client->id() == id) {
      client->reply(reply);
    }
  }
}

/// Lets connections go that are over; in a turn of its own, since they ask for it from within.
void Control::collect() {
  for (auto& client : clients_) {
    if (client && client->gone()) {
      client.reset();
    }
  }
}

void Control::collect_later() {
  machine_.reactor().post(collect_task_);
}

std::vector<UniqueFd> Control::finish() {
  finishing_ = true;
  machine_.reactor().ring().cancel(accept_op_);
  accept_timer_.cancel();
  for (const auto& client : clients_) {
    if (client) {
      client->finish();
    }
  }
  machine_.reactor().drain(kFinishNs);
  for (auto& client : clients_) {
    if (client) {
      client->close();
    }
  }
  machine_.reactor().drain(kFinishNs);
  clients_ = {};
  return std::move(kept_);
}

}  // namespace vireo
