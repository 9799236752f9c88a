// SPDX-License-Identifier: Apache-2.0
// The host side of the serial port: stdio, a file, a pseudo-terminal, a UNIX socket, or nothing.
//
// Owned by Machine. The guest's bytes come from vCPU threads into a bounded buffer and leave on the
// reactor, one write in flight at a time; a reader that stops costs 64 KiB, never a stalled vCPU:
// what comes then is dropped, and "[N bytes lost]" is written when it reads again.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "devices/legacy/serial_16550.h"
#include "devices/legacy/text_matcher.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/base/unix_socket.h"
#include "src/io/reactor.h"

namespace vireo {

enum class SerialMode : std::uint8_t { kStdio, kFile, kPty, kUnix, kNull };

struct ConsoleConfig {
  SerialMode mode = SerialMode::kStdio;
  std::string path;     ///< file, unix: where; or fd:N, for unix a socket that listens
  bool append = false;  ///< file: keep what is there
};

class ConsoleListener {
 public:
  virtual ~ConsoleListener() = default;
  /// The user typed Ctrl-A x. On the reactor's thread.
  virtual void console_quit() = 0;
};

class Console final : public SerialOutput {
 public:
  static constexpr std::size_t kBufferSize = std::size_t{64} << 10;

  Console(Reactor& reactor, ConsoleListener& listener);
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;
  ~Console() override;

  /// Opens what the configuration names; sockets are made here, paths are not resolved later.
  Result<> open(const ConsoleConfig& config);
  /// Begins to read input for `port`. On the reactor's thread.
  void start(Serial16550& port);
  /// Writes what is left and lets go of everything; waits for a stuck reader at most `limit_ns`.
  /// On the reactor's thread, after the last vCPU has stopped.
  void finish(std::uint64_t limit_ns);

  /// The directory in which the socket's name is removed at the end; -1 where there is none.
  int socket_directory() const { return listener_socket_.directory(); }
  /// The pseudo-terminal's name; empty for the other modes.
  const std::string& pty_name() const { return pty_name_; }
  /// Bytes that the guest wrote, and those of them that no reader took. Any thread.
  std::uint64_t transmitted() const { return transmitted_.load(std::memory_order_relaxed); }
  std::uint64_t lost() const { return lost_total_.load(std::memory_order_relaxed); }
  /// The guest's kernel has printed its panic. Any thread.
  bool saw_panic() const { return saw_panic_.load(std::memory_order_acquire); }

  void transmit(std::byte byte) override;
  void receiver_empty() override;

 private:
  void set_output(int fd);
  Result<> open_stdio();
  Result<> open_file_output(const ConsoleConfig& config);
  Result<> open_pty();
  Result<> open_socket(const std::string& path);

  void flush();
  void flush_later();
  void on_written(Op& op, Completion completion);
  void write_failed(int result);
  void read_input();
  void on_read(Op& op, Completion completion);
  void take_input(std::span<const std::byte> bytes);
  void deliver_input();
  void accept_clients();
  void on_accept(Op& op, Completion completion);
  void drop_client();
  void release_client();

  Reactor& reactor_;
  ConsoleListener& listener_;
  Serial16550* port_ = nullptr;

  // Opened once. A descriptor of -1: there is no such side (now).
  UniqueFd owned_in_;
  UniqueFd owned_out_;
  UniqueFd pty_slave_;  // held open, so that the pair survives without a client
  UnixListener listener_socket_;
  UniqueFd client_;
  std::string pty_name_;
  int in_fd_ = -1;
  int out_fd_ = -1;
  bool out_blocks_ = false;  // a terminal: see Ring::prep_write_async()
  bool discard_ = false;     // mode null
  bool terminal_ = false;    // escape sequences are looked for
  bool stopping_ = false;
  bool given_up_ = false;  // on a reader that has stopped, at the end

  // Output. buffer_ and lost_ under mutex_; the rest belongs to the reactor.
  std::mutex mutex_;
  std::vector<std::byte> buffer_;
  std::uint64_t lost_ = 0;  // not yet told to the reader
  std::atomic<std::uint64_t> transmitted_ = 0;
  std::atomic<std::uint64_t> lost_total_ = 0;
  bool wake_posted_ = false;
  std::vector<std::byte> writing_;
  std::size_t written_ = 0;
  Op write_op_;
  bool write_waits_ = false;  // write_op_ is a poll: see on_written()
  Task flush_task_;
  Timer flush_timer_;

  // Input.
  Op read_op_;
  bool read_waits_ = false;
  Op accept_op_;
  bool accept_waits_ = false;
  Timer accept_timer_;
  Task input_task_;
  std::array<std::byte, 256> read_buffer_ = {};
  std::vector<std::byte> pending_input_;  // read, not yet taken by the FIFO
  bool escape_ = false;

  TextMatcher panic_{"Kernel panic - not syncing"};
  std::atomic<bool> saw_panic_ = false;
};

}  // namespace vireo
