// SPDX-License-Identifier: Apache-2.0
#include "src/empty_root.h"

#include <cerrno>
#include <ctime>
#include <string_view>

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/fd.h"

namespace vireo {

namespace {

int pivot_root(const char* new_root, const char* put_old) {
  return static_cast<int>(::syscall(SYS_pivot_root, new_root, put_old));
}

Result<> write_file(const char* path, std::string_view text) {
  const UniqueFd file(::open(path, O_WRONLY | O_CLOEXEC));
  if (!file || ::write(file.get(), text.data(), text.size()) < 0) {
    return fail_errno(errno, fmt::format("sandbox: {}", path));
  }
  return {};
}

}  // namespace

namespace {

/// unshare(2), for a process that has had threads: one that has been joined is still counted for a
/// moment, in which a user namespace is refused with EINVAL.
bool unshare_alone(int flags) {
  constexpr int kTries = 1000;
  constexpr timespec kMoment = {.tv_sec = 0, .tv_nsec = 1'000'000};
  for (int i = 0; i < kTries; ++i) {
    if (::unshare(flags) == 0) {
      return true;
    }
    if (errno != EINVAL) {
      return false;
    }
    ::nanosleep(&kMoment, nullptr);
  }
  return false;
}

}  // namespace

Result<int> enter_mount_namespace() {
  if (::unshare(CLONE_NEWNS) == 0) {
    return 0;
  }
  const uid_t user = ::geteuid();
  const gid_t group = ::getegid();
  // Without /proc its ids could not be kept, and files that it makes would belong to nobody.
  if (::access("/proc/self/uid_map", W_OK) < 0 || !unshare_alone(CLONE_NEWUSER | CLONE_NEWNS)) {
    return errno;
  }
  TRY(write_file("/proc/self/setgroups", "deny"));  // the condition for the group
  TRY(write_file("/proc/self/uid_map", fmt::format("{0} {0} 1", user)));
  TRY(write_file("/proc/self/gid_map", fmt::format("{0} {0} 1", group)));
  return 0;
}

Result<bool> enter_empty_root() {
  TRY_ASSIGN(const int refused, enter_mount_namespace());
  if (refused != 0) {
    return false;
  }
  // Nothing that is mounted here shall be seen elsewhere.
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) < 0) {
    return false;
  }
  const UniqueFd context(::fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!context || ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) < 0) {
    return false;
  }
  const UniqueFd root(
      ::fsmount(context.get(), FSMOUNT_CLOEXEC,
                MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC));
  if (!root || ::move_mount(root.get(), "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) < 0 ||
      ::fchdir(root.get()) < 0) {
    return false;
  }
  // The old root lies under the new one then, and leaves. An initial root file system cannot be
  // left so; that one stays mounted, out of reach of paths.
  if (pivot_root(".", ".") == 0) {
    ::umount2(".", MNT_DETACH);
  }
  return ::chroot(".") == 0;
}

}  // namespace vireo
