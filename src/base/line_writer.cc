// SPDX-License-Identifier: Apache-2.0
#include "src/base/line_writer.h"

#include <algorithm>
#include <cerrno>
#include <climits>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

namespace vireo {

namespace {

/// Whether a write of at most PIPE_BUF would not wait, unless others write there too.
bool has_room(int fd) {
  pollfd request = {.fd = fd, .events = POLLOUT, .revents = 0};
  return ::poll(&request, 1, 0) == 1;
}

}  // namespace

void LineWriter::attach(int fd) {
  fd_ = fd;
  own_.reset();
  way_ = Way::kWrite;
  rest_.clear();
  struct stat status = {};
  if (::fstat(fd, &status) < 0) {
    return;
  }
  if (S_ISSOCK(status.st_mode)) {
    way_ = Way::kSend;
  } else if ((S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode)) &&
             (::fcntl(fd, F_GETFL) & O_NONBLOCK) == 0) {
    constexpr int kFlags = O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    own_ = UniqueFd(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), kFlags));
    if (own_) {
      fd_ = own_.get();
    } else {
      way_ = Way::kAskFirst;
    }
  }
}

bool LineWriter::write(std::string_view line) {
  if (!rest_.empty()) {
    rest_.erase(0, put(rest_));
    if (!rest_.empty()) {
      return false;
    }
  }
  const std::size_t count = put(line);
  if (count > 0) {
    rest_ = line.substr(count);
  }
  return count > 0;
}

/// Returns how many bytes were taken without waiting.
std::size_t LineWriter::put(std::string_view bytes) const {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const std::string_view left = bytes.substr(done);
    ssize_t count = -1;
    switch (way_) {
      case Way::kWrite:
        count = ::write(fd_, left.data(), left.size());
        break;
      case Way::kSend:
        count = ::send(fd_, left.data(), left.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
      case Way::kAskFirst:
        if (!has_room(fd_)) {
          return done;
        }
        count = ::write(fd_, left.data(), std::min<std::size_t>(left.size(), PIPE_BUF));
        break;
    }
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      break;
    }
    done += static_cast<std::size_t>(count);
  }
  return done;
}

}  // namespace vireo
