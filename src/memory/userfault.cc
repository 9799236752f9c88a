// SPDX-License-Identifier: Apache-2.0
#include "src/memory/userfault.h"

#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace vireo {

Result<UniqueFd> open_userfaultfd(std::string& way) {
  constexpr const char* kDevice = "/dev/userfaultfd";
  UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (fd) {
    way = "by system call";
    return fd;
  }
  Error refused = Error::from_errno(errno, "userfaultfd");
  const Result<UniqueFd> device = open_file(kDevice, O_RDWR);
  if (device) {
    fd = UniqueFd(::ioctl(device->get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
    if (fd) {
      way = fmt::format("by {}", kDevice);
      return fd;
    }
  }
  return std::unexpected(std::move(refused));
}

}  // namespace vireo
