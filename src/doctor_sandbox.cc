// SPDX-License-Identifier: Apache-2.0
// The lines about what vireo can lock itself in with, against a guest that breaks out.
#include <cerrno>
#include <cstdint>
#include <string>

#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/doctor_checks.h"
#include "src/empty_root.h"

namespace vireo {

namespace {

constexpr Check kNoNewPrivs = {"no_new_privs", "giving up new privileges (no_new_privs)",
                               "VMs run only with --sandbox off",
                               "prctl in the container's seccomp profile"};
constexpr Check kSeccomp = {
    "seccomp_filter", "system call filters (seccomp)",
    "VMs run only with --sandbox off: a guest that breaks out may use every system call",
    "a kernel with CONFIG_SECCOMP_FILTER"};
constexpr Check kLandlock = {
    "landlock", "file system rules (Landlock)",
    "left out of the sandbox: without an empty root directory too, a guest that breaks out reaches "
    "every file of vireo's user",
    "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in its parameter lsm="};
constexpr Check kMountNamespace = {
    "mount_namespace", "an empty root directory (mount namespace)",
    "left out of the sandbox: Landlock alone keeps a guest that breaks out off the host's files",
    "sysctl user.max_user_namespaces above 0 (Ubuntu: "
    "kernel.apparmor_restrict_unprivileged_userns=0), "
    "or start vireo with CAP_SYS_ADMIN, which it gives up before its guest runs"};
constexpr Check kCoreScheduling = {
    "core_scheduling", "core scheduling",
    "limits.core_scheduling is refused: on a core with SMT, a guest runs beside strangers, and may "
    "find their secrets in what they share",
    "a kernel with CONFIG_SCHED_CORE, or a host without SMT (nosmt)"};

/// For the whole process and for good; it executes nothing and is about to end.
Finding check_no_new_privs() {
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
             ? found(kNoNewPrivs, "available")
             : lacking(kNoNewPrivs, failure("PR_SET_NO_NEW_PRIVS", errno));
}

/// A kernel that has filters looks for one at the null pointer, and installs none (seccomp(2)).
Finding check_seccomp() {
  errno = 0;
  ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, nullptr);
  return errno == EFAULT ? found(kSeccomp, "available")
                         : lacking(kSeccomp, failure("seccomp", errno));
}

Finding check_landlock() {
  const long abi =
      ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return abi > 0 ? found(kLandlock, fmt::format("ABI {}", abi), static_cast<std::uint64_t>(abi))
                 : lacking(kLandlock, failure("landlock_create_ruleset", errno));
}

/// Whether a process of ours may have a mount namespace of its own: tried by a child, which ends.
Finding check_mount_namespace() {
  const pid_t child = ::fork();
  if (child == 0) {
    const Result<int> refused = enter_mount_namespace();
    ::_exit(refused ? *refused : ENOSYS);
  }
  int status = 0;
  pid_t ended = -1;
  do {
    ended = child < 0 ? child : ::waitpid(child, &status, 0);
  } while (ended < 0 && errno == EINTR);
  if (ended < 0) {
    return unknown(kMountNamespace, failure("trying it in a child", errno));
  }
  if (!WIFEXITED(status)) {
    return lacking(kMountNamespace, "unshare ends the process that tries it");
  }
  const int errnum = WEXITSTATUS(status);
  return errnum == 0 ? found(kMountNamespace, "permitted")
                     : lacking(kMountNamespace, failure("unshare", errnum));
}

Finding check_core_scheduling() {
  std::uint64_t cookie = 0;
  constexpr unsigned long kThisThread = 0;
  constexpr unsigned long kPidTypePid = 0;
  if (::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, kThisThread, kPidTypePid, &cookie) == 0) {
    return found(kCoreScheduling, "available");
  }
  if (errno == ENODEV) {
    return found(kCoreScheduling, "not needed: this host's cores run one thread each");
  }
  return lacking(kCoreScheduling, failure("PR_SCHED_CORE", errno));
}

}  // namespace

Section check_sandbox() {
  return {.id = "sandbox",
          .title = "Sandbox",
          .findings = {check_mount_namespace(), check_seccomp(), check_landlock(),
                       check_core_scheduling(), check_no_new_privs()}};
}

}  // namespace vireo
