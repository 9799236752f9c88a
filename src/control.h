// SPDX-License-Identifier: Apache-2.0
// The control socket: HTTP/1.1 with JSON bodies under /vireo/ (src/control_verbs.h).
//
// A client costs bounded memory and time, whatever it sends or does not read: requests have a
// largest size, one is answered before the next is looked at, a request that is not complete or an
// answer that is not taken in kPatienceNs ends the connection, and of events a slow listener loses
// its own. Nothing here waits: a vCPU or a queue never notices.
//
// Owned by main, around the machine's seal() and run(); everything on the reactor's thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/socket.h>
#include <sys/uio.h>

#include "src/base/ancillary_files.h"
#include "src/base/fd.h"
#include "src/base/unix_socket.h"
#include "src/control_verbs.h"
#include "src/events.h"
#include "src/http.h"
#include "src/io/reactor.h"
#include "src/machine.h"

namespace vireo {

class Control;

/// One client.
class ControlConnection final : public EventListener {
 public:
  static constexpr std::uint64_t kPatienceNs = 10'000'000'000;
  /// Output that an event listener may leave unread.
  static constexpr std::size_t kStreamMax = std::size_t{64} << 10;

  ControlConnection(Control& control, Machine& machine, UniqueFd socket, std::uint64_t id);
  ControlConnection(const ControlConnection&) = delete;
  ControlConnection& operator=(const ControlConnection&) = delete;
  ~ControlConnection() override;

  std::uint64_t id() const { return id_; }
  /// The answer to the request that is being served.
  void reply(const ControlReply& reply);
  /// Sends what is there and then no more; at the machine's end.
  void finish();
  /// Ends it, whatever is still to be sent. At the machine's end the client sees that when
  /// Control's owner lets its socket go.
  void close();
  /// Closed, and nothing of it is in flight.
  bool gone() const;

  void event(std::string_view line) override;

 private:
  void read();
  void on_read(Op& op, Completion completion);
  void serve();
  void send(std::string_view text);
  void write();
  void on_written(Op& op, Completion completion);
  void on_impatience() { close(); }

  Control& control_;
  Machine& machine_;
  UniqueFd socket_;
  const std::uint64_t id_;
  HttpRequestParser parser_;
  Op read_op_;
  Op write_op_;
  Timer patience_;
  std::array<std::byte, 4096> input_ = {};
  iovec input_room_ = {};
  AncillaryFiles ancillary_;
  msghdr message_ = {};
  std::vector<UniqueFd> files_;  // came with what is read, for the request that they belong to
  std::size_t input_begin_ = 0;  // what is not yet parsed
  std::size_t input_end_ = 0;
  std::string output_;  // what is being written
  std::size_t written_ = 0;
  std::string waiting_;     // what comes after it
  bool answering_ = false;  // a request's answer is still to come
  bool keep_alive_ = true;
  bool input_over_ = false;  // the client has said all it will
  bool streaming_ = false;
  bool finishing_ = false;
  std::uint64_t lost_events_ = 0;
};

class Control {
 public:
  /// More clients than any tool opens; the next is told so (503).
  static constexpr std::size_t kClientsMax = 16;

  /// Listens on `path`, or takes an inherited listener. Before the machine is built, so that a path
  /// that is taken is found first.
  static Result<UnixListener> listen(const std::string& path);

  /// `machine` outlives the object, and its reactor.
  Control(Machine& machine, UnixListener listener);
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;
  ~Control() = default;

  /// Begins to accept clients. On the reactor's thread, before it runs.
  void start();
  /// Sends what is still to be sent, for a moment, and returns everybody's sockets: who closes them
  /// when the machine is gone tells clients that its memory and files are free. After the reactor's
  /// run().
  std::vector<UniqueFd> finish();

 private:
  friend class ControlConnection;

  void accept();
  void on_accept(Op& op, Completion completion);
  void collect();
  void collect_later();
  void keep(UniqueFd socket) { kept_.push_back(std::move(socket)); }
  void answered(std::uint64_t id, const ControlReply& reply);

  Machine& machine_;
  UnixListener listener_;
  Op accept_op_;
  bool accept_waits_ = false;
  Timer accept_timer_;
  Task collect_task_;
  bool finishing_ = false;
  std::uint64_t next_id_ = 1;
  std::array<std::unique_ptr<ControlConnection>, kClientsMax> clients_;
  std::vector<UniqueFd> kept_;  // of those who were there at the end
};

}  // namespace vireo
