// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/console.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/core.h>

#include "devices/legacy/terminal.h"
#include "src/base/log.h"

namespace vireo {

namespace {

/// How long a line that is not complete may wait for more before it is written. A guest prints byte
/// by byte, and a write for each would cost a change of threads for each.
constexpr std::uint64_t kFlushDelayNs = 1'000'000;
/// So much is written at once, complete line or not.
constexpr std::size_t kFlushSize = 1024;

constexpr std::byte kEscape{0x01};  // Ctrl-A, as QEMU has it

/// Removes a socket that nobody listens on; one that answers is somebody's and stays.
Result<> remove_stale_socket(const sockaddr_un& address) {
  struct stat status = {};
  if (::lstat(address.sun_path, &status) < 0) {
    return {};
  }
  if (!S_ISSOCK(status.st_mode)) {
    return fail(ErrorCode::kConfig,
                fmt::format("serial.path: {} exists and is not a socket", address.sun_path));
  }
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno != ECONNREFUSED) {
    return fail(ErrorCode::kConfig,
                fmt::format("serial.path: {} is in use by another process", address.sun_path));
  }
  ::unlink(address.sun_path);
  return {};
}

}  // namespace

Console::Console(Reactor& reactor, ConsoleListener& listener)
    : reactor_(reactor), listener_(listener), flush_timer_(reactor) {
  write_op_.bind<Console, &Console::on_written>(this);
  read_op_.bind<Console, &Console::on_read>(this);
  accept_op_.bind<Console, &Console::on_accept>(this);
  flush_task_.bind<Console, &Console::flush_later>(this);
  flush_timer_.bind<Console, &Console::flush>(this);
  input_task_.bind<Console, &Console::deliver_input>(this);
}

Console::~Console() {
  restore_terminal();
  if (!socket_path_.empty()) {
    ::unlink(socket_path_.c_str());
  }
}

Result<> Console::open(const ConsoleConfig& config) {
  switch (config.mode) {
    case SerialMode::kStdio:
      return open_stdio();
    case SerialMode::kFile:
      return open_file_output(config);
    case SerialMode::kPty:
      return open_pty();
    case SerialMode::kUnix:
      return listen(config.path);
    case SerialMode::kNull:
      discard_ = true;
      return {};
  }
  std::unreachable();
}

Result<> Console::open_stdio() {
  out_fd_ = STDOUT_FILENO;
  in_fd_ = STDIN_FILENO;
  if (::isatty(STDIN_FILENO) == 1) {
    if (!owns_terminal(STDIN_FILENO)) {
      in_fd_ = -1;  // a background job: reading would stop the whole process
      return {};
    }
    TRY(make_terminal_raw(STDIN_FILENO));
    terminal_ = true;
  }
  return {};
}

Result<> Console::open_file_output(const ConsoleConfig& config) {
  auto file = open_file(
      config.path, O_WRONLY | O_CREAT | O_APPEND | O_NOCTTY | (config.append ? 0 : O_TRUNC), 0644);
  if (!file) {
    return std::unexpected(std::move(file).error().context("serial.path"));
  }
  owned_out_ = std::move(*file);
  out_fd_ = owned_out_.get();
  return {};
}

Result<> Console::open_pty() {
  owned_in_ = UniqueFd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  std::array<char, 64> name = {};
  if (!owned_in_ || ::grantpt(owned_in_.get()) < 0 || ::unlockpt(owned_in_.get()) < 0 ||
      ::ptsname_r(owned_in_.get(), name.data(), name.size()) != 0) {
    return fail_errno(errno, "serial: creating a pseudo-terminal");
  }
  pty_name_ = name.data();
  TRY_ASSIGN(pty_slave_, open_file(pty_name_, O_RDWR | O_NOCTTY));
  TRY(make_pty_raw(pty_slave_.get()));
  in_fd_ = owned_in_.get();
  out_fd_ = owned_in_.get();
  return {};
}

Result<> Console::listen(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return fail(ErrorCode::kConfig, fmt::format("serial.path: a socket's path has at most {} bytes",
                                                sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  TRY(remove_stale_socket(address));
  listen_fd_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listen_fd_ ||
      ::bind(listen_fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0) {
    return fail_errno(errno, fmt::format("serial.path: {}", path));
  }
  socket_path_ = path;
  if (::listen(listen_fd_.get(), 1) < 0) {
    return fail_errno(errno, fmt::format("serial.path: {}", path));
  }
  return {};
}

void Console::start(Serial16550& port) {
  port_ = &port;
  if (listen_fd_) {
    reactor_.ring().prep_accept(accept_op_, listen_fd_.get());
  }
  read_input();
}

void Console::finish(std::uint64_t limit_ns) {
  // Input first, so that only the writes are waited for.
  stopping_ = true;
  reactor_.ring().cancel(read_op_);
  reactor_.ring().cancel(accept_op_);
  flush_timer_.cancel();
  flush();
  if (!reactor_.drain(limit_ns)) {
    {
      const std::scoped_lock lock(mutex_);
      discard_ = true;
    }
    reactor_.ring().cancel(write_op_);
    reactor_.drain(limit_ns);
  }
}

// Output
// -------------------------------------------------------------------------------------------

void Console::transmit(std::byte byte) {
  if (panic_.feed(std::to_integer<char>(byte))) {
    saw_panic_.store(true, std::memory_order_release);
  }
  const std::scoped_lock lock(mutex_);
  if (discard_) {
    return;
  }
  if (buffer_.size() >= kBufferSize) {
    ++lost_;
    return;
  }
  buffer_.push_back(byte);
  // One wake-up for the first byte, one more when there is enough for a write.
  if (!std::exchange(wake_posted_, true) || buffer_.size() == kFlushSize) {
    reactor_.post(flush_task_);
  }
}

void Console::flush_later() {
  bool now = false;
  {
    const std::scoped_lock lock(mutex_);
    now = buffer_.size() >= kFlushSize;
  }
  if (now) {
    flush_timer_.cancel();
    flush();
  } else if (!flush_timer_.armed()) {
    flush_timer_.arm(kFlushDelayNs);
  }
}

void Console::flush() {
  // A write in flight goes on by its completion; with nobody there, the buffer keeps the oldest
  // bytes until somebody comes.
  if (write_op_.in_flight() || out_fd_ < 0) {
    return;
  }
  if (written_ == writing_.size()) {
    writing_.clear();
    written_ = 0;
    const std::scoped_lock lock(mutex_);
    wake_posted_ = false;
    std::swap(writing_, buffer_);
    if (lost_ > 0) {
      const std::string note = fmt::format("\r\n[{} bytes lost]\r\n", std::exchange(lost_, 0));
      const auto bytes = std::as_bytes(std::span(note));
      writing_.insert(writing_.end(), bytes.begin(), bytes.end());
    }
  }
  if (!writing_.empty()) {
    reactor_.ring().prep_write(write_op_, out_fd_, std::span(writing_).subspan(written_),
                               Ring::kNoOffset);
  }
}

void Console::on_written(Op& /*op*/, Completion completion) {
  if (completion.result > 0) {
    written_ += static_cast<std::size_t>(completion.result);
  } else if (completion.result != -EINTR && completion.result != -EAGAIN) {
    // A reader that is gone, a full disk: these bytes are lost, and said to be if it comes back.
    {
      const std::scoped_lock lock(mutex_);
      lost_ += writing_.size() - written_;
    }
    writing_.clear();
    written_ = 0;
    if (client_) {
      drop_client();
      return;
    }
    if (completion.result == -EPIPE || completion.result == -EBADF || completion.result == -EIO) {
      const std::scoped_lock lock(mutex_);
      discard_ = true;
      return;
    }
    if (!stopping_) {
      flush_timer_.arm(kFlushDelayNs * 100);
    }
    return;
  }
  flush();
}

// Input
// --------------------------------------------------------------------------------------------

void Console::read_input() {
  if (in_fd_ >= 0 && port_ != nullptr && !stopping_ && !read_op_.in_flight() &&
      pending_input_.empty()) {
    reactor_.ring().prep_read(read_op_, in_fd_, read_buffer_, Ring::kNoOffset);
  }
}

void Console::on_read(Op& /*op*/, Completion completion) {
  if (completion.result > 0) {
    take_input(std::span(read_buffer_).first(static_cast<std::size_t>(completion.result)));
    deliver_input();
    return;
  }
  if (completion.result == -EINTR || completion.result == -EAGAIN) {
    read_input();
    return;
  }
  if (client_) {
    drop_client();
  } else {
    in_fd_ = -1;  // the end of stdin: the console goes on without input
  }
}

void Console::take_input(std::span<const std::byte> bytes) {
  if (!terminal_) {
    pending_input_.assign(bytes.begin(), bytes.end());
    return;
  }
  for (const std::byte byte : bytes) {
    if (std::exchange(escape_, false)) {
      if (byte == std::byte{'x'}) {
        listener_.console_quit();
        continue;
      }
      pending_input_.push_back(kEscape);
      if (byte != kEscape) {
        pending_input_.push_back(byte);
      }
    } else if (byte == kEscape) {
      escape_ = true;
    } else {
      pending_input_.push_back(byte);
    }
  }
}

void Console::receiver_empty() {
  reactor_.post(input_task_);
}

void Console::deliver_input() {
  if (!pending_input_.empty()) {
    const std::size_t taken = port_->receive(pending_input_);
    pending_input_.erase(pending_input_.begin(),
                         pending_input_.begin() + static_cast<std::ptrdiff_t>(taken));
  }
  // No more is read than the guest takes: the rest waits in the kernel.
  read_input();
}

// Clients of a UNIX socket
// ---------------------------------------------------------------------------

void Console::on_accept(Op& /*op*/, Completion completion) {
  if (completion.result >= 0) {
    UniqueFd accepted(completion.result);
    if (!client_) {
      client_ = std::move(accepted);
      in_fd_ = client_.get();
      out_fd_ = client_.get();
      flush();
      read_input();
    }
    // A second client is sent away at once: one console has one reader.
  }
  if (!accept_op_.in_flight() && !stopping_ && completion.result != -ECANCELED) {
    reactor_.ring().prep_accept(accept_op_, listen_fd_.get());
  }
}

void Console::drop_client() {
  in_fd_ = -1;
  out_fd_ = -1;
  // The other direction's operation still names the descriptor; shut down, it ends by itself.
  ::shutdown(client_.get(), SHUT_RDWR);
  if (!read_op_.in_flight() && !write_op_.in_flight()) {
    client_.reset();
  }
}

}  // namespace vireo
