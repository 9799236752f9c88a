// SPDX-License-Identifier: Apache-2.0
#include "src/base/unix_socket.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <fmt/core.h>

#include "src/base/fd_path.h"

namespace vireo {

namespace {

constexpr int kBacklog = 16;

/// Whether an inherited descriptor is what clients connect to.
bool is_listener(int fd) {
  const auto option = [fd](int name) {
    int value = -1;
    socklen_t size = sizeof(value);
    return ::getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
  };
  return option(SO_DOMAIN) == AF_UNIX && option(SO_TYPE) == SOCK_STREAM &&
         option(SO_ACCEPTCONN) == 1;
}

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return fail(ErrorCode::kConfig, fmt::format("{}: a socket's path has at most {} bytes", path,
                                                sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* as_sockaddr(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

/// Whether the process that listens at the other end of `fd` is over: its ring may keep the socket
/// for a moment after it was killed.
bool listener_is_over(int fd) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  // A process of another pid namespace is shown as 0.
  return ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid > 0 &&
         ::kill(peer.pid, 0) < 0 && errno == ESRCH;
}

/// Removes a socket that nobody listens on; one that answers is somebody's and stays.
Result<> remove_stale_socket(const sockaddr_un& address) {
  struct stat status = {};
  if (::lstat(address.sun_path, &status) < 0) {
    return {};
  }
  if (!S_ISSOCK(status.st_mode)) {
    return fail(ErrorCode::kConfig, fmt::format("{} exists and is not a socket", address.sun_path));
  }
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) {
    return fail_errno(errno, "socket");
  }
  const bool connected = ::connect(probe.get(), as_sockaddr(address), sizeof(address)) == 0;
  if (connected ? !listener_is_over(probe.get()) : errno != ECONNREFUSED) {
    return fail(ErrorCode::kConfig,
                fmt::format("{} is in use by another process", address.sun_path));
  }
  ::unlink(address.sun_path);
  return {};
}

Result<UniqueFd> take_inherited(const std::string& path) {
  TRY_ASSIGN(UniqueFd socket, open_inherited(path, O_RDWR));
  if (!is_listener(socket.get())) {
    return fail(ErrorCode::kConfig,
                fmt::format("{}: wants a UNIX stream socket that listens", path));
  }
  return socket;
}

Result<UniqueFd> listen_on(const std::string& path, mode_t mode, OwnedPath& name) {
  TRY_ASSIGN(const sockaddr_un address, address_of(path));
  TRY_ASSIGN(name, OwnedPath::open(path));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // The name gets the permissions that the socket has before it is bound.
  if (!socket || ::fchmod(socket.get(), mode) < 0) {
    return fail_errno(errno, "socket");
  }
  const UniqueFd directory(
      ::openat(name.directory(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK));
  // A directory that may be written and not read is nobody's usual one: there without the lock.
  if (directory && ::flock(directory.get(), LOCK_EX) < 0) {
    return fail_errno(errno, path);
  }
  TRY(remove_stale_socket(address));
  if (::bind(socket.get(), as_sockaddr(address), sizeof(address)) < 0) {
    return fail_errno(errno, path);
  }
  name.take();
  if (::listen(socket.get(), kBacklog) < 0) {
    return fail_errno(errno, path);
  }
  return socket;
}

}  // namespace

Result<UnixListener> UnixListener::open(const std::string& path, std::string_view key,
                                        mode_t mode) {
  UnixListener listener;
  Result<UniqueFd> socket =
      is_inherited(path) ? take_inherited(path) : listen_on(path, mode, listener.name_);
  if (!socket) {
    return std::unexpected(std::move(socket).error().context(key));
  }
  listener.fd_ = std::move(*socket);
  return listener;
}

Result<UniqueFd> connect_unix(const std::string& path) {
  TRY_ASSIGN(const sockaddr_un address, address_of(path));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket || ::connect(socket.get(), as_sockaddr(address), sizeof(address)) < 0) {
    return fail_errno(errno, path);
  }
  return socket;
}

}  // namespace vireo
