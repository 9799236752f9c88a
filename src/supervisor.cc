// SPDX-License-Identifier: Apache-2.0
#include "src/supervisor.h"

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/environment.h"
#include "src/base/fd_path.h"
#include "src/base/log.h"

namespace vireo {

namespace {

constexpr const char* kLog = "supervisor";
constexpr std::uint64_t kRetryNs = 20'000'000;

}  // namespace

Supervisor::Supervisor(Reactor& reactor) : watchdog_(reactor), retry_(reactor) {
  watchdog_.bind<Supervisor, &Supervisor::ping>(this);
  retry_.bind<Supervisor, &Supervisor::flush>(this);
}

Result<> Supervisor::open(const std::string& notify) {
  if (!notify.empty()) {
    auto opened = open_inherited(notify, O_WRONLY);
    if (!opened) {
      return std::unexpected(std::move(opened).error().context("process.notify"));
    }
    notify_ = std::move(*opened);
  }
  if (const char* const address = std::getenv("NOTIFY_SOCKET"); address != nullptr) {
    connect(address);
  }
  const std::optional<std::uint64_t> interval_us = environment_number("WATCHDOG_USEC");
  const std::optional<std::uint64_t> pid = environment_number("WATCHDOG_PID");
  if (socket_ && interval_us && (!pid || *pid == static_cast<std::uint64_t>(::getpid()))) {
    // Twice in each interval, as sd_watchdog_enabled(3) advises.
    watchdog_interval_ns_ = *interval_us * 1000 / 2;
  }
  return {};
}

/// A supervisor that cannot be reached is worth a warning: sd_notify(3) leaves it at that too.
void Supervisor::connect(const std::string& address) {
  sockaddr_un target = {};
  target.sun_family = AF_UNIX;
  const bool abstract = address.starts_with('@');
  if ((!abstract && !address.starts_with('/')) || address.size() >= sizeof(target.sun_path)) {
    log_warn(kLog, "NOTIFY_SOCKET: neither a path nor an abstract socket; nothing is notified");
    return;
  }
  std::memcpy(target.sun_path, address.data(), address.size());
  if (abstract) {
    target.sun_path[0] = '\0';
  }
  UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto size =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address.size() + (abstract ? 0 : 1));
  if (!socket || ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&target), size) < 0) {
    log_warn(kLog, "{}", Error::from_errno(errno, "NOTIFY_SOCKET: " + address).message());
    return;
  }
  socket_ = std::move(socket);
}

void Supervisor::start() {
  if (watchdog_interval_ns_ > 0) {
    ping();
  }
}

void Supervisor::status(std::string_view text) {
  status_ = fmt::format("STATUS={}", text);
  flush();
}

void Supervisor::ready() {
  state_ = "READY=1";
  flush();
  if (notify_) {
    // A newline is what supervisors of that school wait for; it is closed behind it.
    if (::write(notify_.get(), "\n", 1) != 1) {
      log_warn(kLog, "{}", Error::from_errno(errno, "process.notify").message());
    }
    notify_.reset();
  }
}

void Supervisor::stopping() {
  // A VM that ends before its readiness was taken is not ready any more.
  state_ = "STOPPING=1";
  flush();
}

void Supervisor::stop() {
  watchdog_interval_ns_ = 0;
  watchdog_.cancel();
  retry_.cancel();
}

void Supervisor::flush() {
  if (!socket_) {
    return;
  }
  for (std::string* const text : {&state_, &status_}) {
    if (text->empty()) {
      continue;
    }
    if (::send(socket_.get(), text->data(), text->size(), MSG_NOSIGNAL) < 0 &&
        (errno == EAGAIN || errno == ENOBUFS)) {
      retry_.arm(kRetryNs);
      return;
    }
    text->clear();
  }
}

void Supervisor::ping() {
  if (watchdog_interval_ns_ == 0) {
    return;
  }
  // One that is lost is followed by the next in time.
  constexpr std::string_view kPing = "WATCHDOG=1";
  ::send(socket_.get(), kPing.data(), kPing.size(), MSG_NOSIGNAL);
  watchdog_.arm(watchdog_interval_ns_);
}

}  // namespace vireo
