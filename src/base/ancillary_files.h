// SPDX-License-Identifier: Apache-2.0
// Descriptors that go through a UNIX socket beside the bytes (SCM_RIGHTS, unix(7)).
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include <sys/socket.h>
#include <sys/uio.h>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

class AncillaryFiles {
 public:
  /// Of one message; those beyond are closed by the kernel.
  static constexpr std::size_t kMax = 64;

  /// Makes `message` one that receives into this room.
  void receive_with(msghdr& message) {
    message.msg_control = room_.data();
    message.msg_controllen = room_.size();
  }
  /// What came with a message that was received so, in the order in which it was sent.
  static std::vector<UniqueFd> take(msghdr& message) {
    std::vector<UniqueFd> files;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) {
        continue;
      }
      const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(fd), sizeof(fd));
        files.emplace_back(fd);
      }
    }
    return files;
  }
  /// Makes `message` one that carries `fds`, at least one and at most kMax.
  void send_with(msghdr& message, std::span<const int> fds) {
    CHECK(!fds.empty() && fds.size() <= kMax);
    message.msg_control = room_.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
  }

 private:
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMax * sizeof(int))> room_ = {};
};

}  // namespace vireo
