// SPDX-License-Identifier: Apache-2.0
#include "src/sandbox.h"

#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp_filters.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "src/base/fd.h"
#include "src/base/log.h"
#include "src/empty_root.h"
#include "src/landlock.h"

namespace vireo {

namespace {

constexpr const char* kLog = "sandbox";

/// Lacks of this host, for the one warning.
class Lacks {
 public:
  void add(std::string_view part) {
    text_ += text_.empty() ? "" : ", ";
    text_ += part;
  }
  void warn() const {
    if (!text_.empty()) {
      log_warn(kLog, "without {}: this host does not give it (see vireo doctor)", text_);
    }
  }

 private:
  std::string text_;
};

/// Gives up all capabilities, but for CAP_DAC_OVERRIDE where the process's own user could not
/// remove what it made in another's directory.
Result<> drop_capabilities(const SandboxPaths& paths) {
  // Up to the first that this kernel does not know; without the right to drop them there are none
  // to drop.
  for (int capability = 0; ::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; ++capability) {
  }
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> data = {};
  if (::syscall(SYS_capget, &header, data.data()) < 0) {
    return fail_errno(errno, "sandbox: capget");
  }
  const std::uint32_t override_bit = 1U << CAP_DAC_OVERRIDE;
  const bool may_override = (data[0].permitted & override_bit) != 0;
  data = {};
  data[0].permitted = may_override ? override_bit : 0;
  if (::syscall(SYS_capset, &header, data.data()) < 0) {
    return fail_errno(errno, "sandbox: capset");
  }
  if (!may_override) {
    return {};
  }
  bool needed = false;
  for (const std::vector<int>* list : {&paths.removal, &paths.writing}) {
    for (const int directory : *list) {
      needed = needed || ::faccessat(directory, ".", W_OK | X_OK, AT_EACCESS) < 0;
    }
  }
  data[0] = {.effective = needed ? override_bit : 0,
             .permitted = needed ? override_bit : 0,
             .inheritable = 0};
  if (::syscall(SYS_capset, &header, data.data()) < 0) {
    return fail_errno(errno, "sandbox: capset");
  }
  return {};
}

Result<> install_filter(std::span<const sock_filter> filter, std::string_view what) {
  const sock_fprog program = {.len = static_cast<unsigned short>(filter.size()),
                              // NOLINTNEXTLINE(*-pro-type-const-cast): the kernel copies it
                              .filter = const_cast<sock_filter*>(filter.data())};
  if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0) {
    return fail_errno(errno, std::string("sandbox: the seccomp filter of ") + std::string(what));
  }
  return {};
}

}  // namespace

Result<> enter_sandbox(const SandboxPaths& paths) {
#if VIREO_SANITIZED
  // The sanitizers' own work at the end needs files, threads and system calls of its own.
  log_debug(kLog, "left out of a build with sanitizers");
  static_cast<void>(paths);
  static_cast<void>(install_filter);
  static_cast<void>(drop_capabilities);
  return {};
#else
  Lacks lacks;
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
    return fail_errno(errno, "sandbox: prctl");
  }
  // Its paths are looked up before the root is gone.
  TRY_ASSIGN(const UniqueFd rules, make_landlock_rules(paths));
  TRY_ASSIGN(const bool empty, enter_empty_root());
  if (!empty) {
    lacks.add("an empty root directory");
  }
  // Not sooner: a process that may not be dumped has no say in its own user namespace.
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) {
    return fail_errno(errno, "sandbox: prctl");
  }
  TRY(drop_capabilities(paths));
  if (!rules) {
    lacks.add("landlock");
  } else if (::syscall(SYS_landlock_restrict_self, rules.get(), 0) < 0) {
    return fail_errno(errno, "sandbox: landlock_restrict_self");
  }
  lacks.warn();
  return install_filter(kCommonFilter, "the process");
#endif
}

Result<> narrow_sandbox(SandboxedThread kind) {
#if VIREO_SANITIZED
  static_cast<void>(kind);
  return {};
#else
  switch (kind) {
    case SandboxedThread::kMain:
      return install_filter(kMainFilter, "the main thread");
    case SandboxedThread::kVcpu:
      return install_filter(kVcpuFilter, "a vCPU's thread");
    case SandboxedThread::kIo:
      return install_filter(kIoFilter, "an I/O thread");
    case SandboxedThread::kOffload:
      return install_filter(kOffloadFilter, "a thread of the pool");
    case SandboxedThread::kFeeder:
      return install_filter(kFeederFilter, "the thread that brings guest memory");
  }
  std::unreachable();
#endif
}

}  // namespace vireo
