// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/console.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fmt/core.h>

#include "devices/legacy/terminal.h"
#include "src/base/fd_path.h"

namespace vireo {

namespace {

/// How long a line that is not complete may wait for more before it is written. A guest prints byte
/// by byte, and a write for each would cost a change of threads for each.
constexpr std::uint64_t kFlushDelayNs = 1'000'000;
/// So much is written at once, complete line or not.
constexpr std::size_t kFlushSize = 1024;

/// How long a failed write, or a failed accept, rests before the next.
constexpr std::uint64_t kRetryDelayNs = 100 * kFlushDelayNs;

/// Of the console's socket, before the umask: as any program's that has no opinion.
constexpr mode_t kSocketMode = 0777;

constexpr std::byte kEscape{0x01};  // Ctrl-A, as QEMU has it

bool has_hung_up(int fd) {
  pollfd request = {.fd = fd, .events = 0, .revents = 0};
  return ::poll(&request, 1, 0) == 1;
}

}  // namespace

Console::Console(Reactor& reactor, ConsoleListener& listener)
    : reactor_(reactor), listener_(listener), flush_timer_(reactor), accept_timer_(reactor) {
  write_op_.bind<Console, &Console::on_written>(this);
  read_op_.bind<Console, &Console::on_read>(this);
  accept_op_.bind<Console, &Console::on_accept>(this);
  accept_timer_.bind<Console, &Console::accept_clients>(this);
  flush_task_.bind<Console, &Console::flush_later>(this);
  flush_timer_.bind<Console, &Console::flush>(this);
  input_task_.bind<Console, &Console::deliver_input>(this);
}

Console::~Console() {
  restore_terminal();
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
      return open_socket(config.path);
    case SerialMode::kNull:
      discard_ = true;
      return {};
  }
  std::unreachable();
}

void Console::set_output(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  // For a regular file it means nothing but to io_uring, which would not wait for the disk.
  if ((flags & O_NONBLOCK) != 0 && regular_file_size(fd)) {
    ::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
  }
  out_blocks_ = (flags & O_NONBLOCK) == 0 && ::isatty(fd) == 1;
  out_fd_ = fd;
}

Result<> Console::open_stdio() {
  set_output(STDOUT_FILENO);
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
  // O_NONBLOCK: a FIFO that nobody reads is refused, not waited for, and a terminal is not either.
  constexpr int kFlags = O_WRONLY | O_CREAT | O_APPEND | O_NOCTTY | O_NONBLOCK;
  auto file = open_path(config.path, kFlags | (config.append ? 0 : O_TRUNC), 0644);
  if (!file) {
    return std::unexpected(std::move(file).error().context("serial.path"));
  }
  if (auto fit = check_takes_text(file->get()); !fit) {
    return std::unexpected(
        std::move(fit).error().context(fmt::format("serial.path: {}", config.path)));
  }
  owned_out_ = std::move(*file);
  set_output(owned_out_.get());
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
  ::fcntl(owned_in_.get(), F_SETFL, O_RDWR | O_NONBLOCK);
  in_fd_ = owned_in_.get();
  set_output(owned_in_.get());
  return {};
}

Result<> Console::open_socket(const std::string& path) {
  TRY_ASSIGN(listener_socket_, UnixListener::open(path, "serial.path", kSocketMode));
  return {};
}

void Console::start(Serial16550& port) {
  port_ = &port;
  if (listener_socket_) {
    accept_clients();
  }
  read_input();
}

void Console::finish(std::uint64_t limit_ns) {
  // Input first, so that only the writes are waited for.
  stopping_ = true;
  reactor_.ring().cancel(read_op_);
  reactor_.ring().cancel(accept_op_);
  accept_timer_.cancel();
  flush_timer_.cancel();
  flush();
  if (!reactor_.drain(limit_ns)) {
    given_up_ = true;
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
  transmitted_.fetch_add(1, std::memory_order_relaxed);
  const std::scoped_lock lock(mutex_);
  if (discard_) {
    return;
  }
  if (buffer_.size() >= kBufferSize) {
    ++lost_;
    lost_total_.fetch_add(1, std::memory_order_relaxed);
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
    now = stopping_ || buffer_.size() >= kFlushSize;
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
  if (write_op_.in_flight() || out_fd_ < 0 || given_up_) {
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
  const auto rest = std::span(writing_).subspan(written_);
  if (rest.empty()) {
    return;
  }
  if (out_blocks_) {
    reactor_.ring().prep_write_async(write_op_, out_fd_, rest, Ring::kNoOffset);
  } else {
    reactor_.ring().prep_write(write_op_, out_fd_, rest, Ring::kNoOffset);
  }
}

void Console::on_written(Op& /*op*/, Completion completion) {
  const bool ready = std::exchange(write_waits_, false) && completion.result >= 0;
  if (ready || completion.result == -EINTR) {
    flush();
  } else if (completion.result > 0) {
    written_ += static_cast<std::size_t>(completion.result);
    flush();
  } else if (completion.result == -EAGAIN && out_fd_ >= 0) {
    // A description that is non-blocking, by whoever shares it: io_uring does not wait for it.
    write_waits_ = true;
    reactor_.ring().prep_poll(write_op_, out_fd_, POLLOUT);
  } else {
    write_failed(completion.result);
  }
  release_client();
}

/// A reader that is gone, a full disk: these bytes are lost, and said to be if it comes back.
void Console::write_failed(int result) {
  const bool for_good = result == -EPIPE || result == -EBADF || result == -EIO;
  {
    const std::scoped_lock lock(mutex_);
    lost_ += writing_.size() - written_;
    lost_total_.fetch_add(writing_.size() - written_, std::memory_order_relaxed);
    discard_ = discard_ || (for_good && !client_);
  }
  writing_.clear();
  written_ = 0;
  if (client_) {
    drop_client();
  } else if (!for_good && !stopping_) {
    flush_timer_.arm(kRetryDelayNs);
  }
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
  const bool ready = std::exchange(read_waits_, false) && completion.result >= 0;
  if (ready || completion.result == -EINTR) {
    read_input();
  } else if (completion.result > 0) {
    take_input(std::span(read_buffer_).first(static_cast<std::size_t>(completion.result)));
    deliver_input();
  } else if (completion.result == -EAGAIN && in_fd_ >= 0 && !stopping_) {
    read_waits_ = true;
    reactor_.ring().prep_poll(read_op_, in_fd_, POLLIN);
  } else if (client_) {
    drop_client();
  } else {
    in_fd_ = -1;  // the end of stdin: the console goes on without input
  }
  release_client();
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

void Console::accept_clients() {
  reactor_.ring().prep_accept(accept_op_, listener_socket_.fd());
}

void Console::on_accept(Op& /*op*/, Completion completion) {
  const bool waited = std::exchange(accept_waits_, false);
  if (completion.result >= 0 && !waited) {
    UniqueFd accepted(completion.result);
    // One whose input the guest does not take is not read from, so this is where we learn of it.
    if (client_ && has_hung_up(client_.get())) {
      drop_client();
    }
    if (!client_) {
      client_ = std::move(accepted);
      in_fd_ = client_.get();
      out_fd_ = client_.get();
      flush();
      read_input();
    }
    // A second client is sent away at once: one console has one reader.
  }
  if (accept_op_.in_flight() || stopping_) {
    return;
  }
  if (completion.result >= 0 || completion.result == -ECONNABORTED) {
    accept_clients();
  } else if (completion.result == -EAGAIN) {
    accept_waits_ = true;
    reactor_.ring().prep_poll(accept_op_, listener_socket_.fd(), POLLIN);
  } else {
    accept_timer_.arm(kRetryDelayNs);  // no descriptor is free, perhaps
  }
}

void Console::drop_client() {
  in_fd_ = -1;
  out_fd_ = -1;
  // The other direction's operation still names the descriptor; shut down, it ends by itself.
  ::shutdown(client_.get(), SHUT_RDWR);
  release_client();
}

/// Closes a client that was dropped, once nothing names its descriptor.
void Console::release_client() {
  if (client_ && in_fd_ < 0 && !read_op_.in_flight() && !write_op_.in_flight()) {
    client_.reset();
  }
}

}  // namespace vireo
