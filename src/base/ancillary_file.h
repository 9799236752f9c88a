// SPDX-License-Identifier: Apache-2.0
// A descriptor that goes through a UNIX socket beside the bytes (SCM_RIGHTS, unix(7)).
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <span>

#include <sys/socket.h>
#include <sys/uio.h>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

class AncillaryFile {
 public:
  /// Makes `message` one that receives into this room.
  void receive_with(msghdr& message) {
    message.msg_control = room_.data();
    message.msg_controllen = room_.size();
  }
  /// What came with a message that was received so, or nothing; of several, the last.
  static UniqueFd take(msghdr& message) {
    UniqueFd file;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) {
        continue;
      }
      // There is room for two, by its alignment: whatever came is this process's now.
      const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(fd), sizeof(fd));
        file = UniqueFd(fd);
      }
    }
    return file;
  }
  /// Makes `message` one that carries `fd`.
  void send_with(msghdr& message, int fd) {
    receive_with(message);
    cmsghdr* const part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(fd));
    std::memcpy(CMSG_DATA(part), &fd, sizeof(fd));
  }

 private:
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> room_ = {};
};

}  // namespace vireo
