// SPDX-License-Identifier: Apache-2.0
// The lines about the rest of the host: its kernel, its network, the limits of this process.
#include <array>
#include <cerrno>
#include <cstdio>
#include <string>
#include <string_view>

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_tun.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <fmt/core.h>
#include <net/if.h>

#include "src/base/fd.h"
#include "src/cgroup.h"
#include "src/config.h"
#include "src/doctor_checks.h"

namespace vireo {

namespace {

constexpr Check kKernel = {
    "kernel_release", "Linux",
    "vireo is made for Linux 6.1 and newer; what an older one lacks is below",
    "a host kernel of 6.1 or newer"};
constexpr Check kTap = {"tap_device", "TAP interfaces", "[[net]] tap is refused",
                        "modprobe tun, and give the user (or the container) /dev/net/tun; [[net]] "
                        "passt and stream work without"};
constexpr Check kTapFeatures = {
    "tap_features", "TAP offloads and queues",
    "the guest's checksums and large packets are worked on one by one, by one queue",
    "a host kernel of 6.1 or newer"};
constexpr Check kTapCreate = {
    "tap_create", "making TAP interfaces (CAP_NET_ADMIN)",
    "only TAP interfaces that are there already and belong to the user can be used",
    "ip tuntap add NAME mode tap user USER (multi_queue), or hand one over as fd:N"};
constexpr Check kCgroup = {
    "cgroup_v2", "a control group of our own (cgroup v2)", "[limits] cgroup is refused",
    "start vireo with systemd-run -p Delegate=yes (--user --scope for an ordinary user); on a host "
    "of cgroup v1, boot with systemd.unified_cgroup_hierarchy=1"};
constexpr Check kControllers = {
    "cgroup_controllers", "its controllers",
    "of [limits], memory_max, cpu_quota, cpu_weight, pids_max or io_max is refused",
    "systemd-run -p Delegate=yes; on a host of cgroup v1 and v2, boot with cgroup_no_v1=all"};

Finding check_kernel() {
  constexpr unsigned kMajor = 6;
  constexpr unsigned kMinor = 1;
  utsname name = {};
  if (::uname(&name) < 0) {
    return unknown(kKernel, failure("uname", errno));
  }
  unsigned major = 0;
  unsigned minor = 0;
  // NOLINTNEXTLINE(cert-err34-c): a number too large for it is no kernel's.
  if (std::sscanf(name.release, "%u.%u", &major, &minor) != 2) {
    return unknown(kKernel, name.release);
  }
  const bool recent = major > kMajor || (major == kMajor && minor >= kMinor);
  return recent ? found(kKernel, name.release) : lacking(kKernel, name.release);
}

Finding check_tap_features(int fd) {
  struct Feature {
    unsigned flag;
    const char* name;
  };
  constexpr Feature kFeatures[] = {{IFF_VNET_HDR, "offloads (IFF_VNET_HDR)"},
                                   {IFF_MULTI_QUEUE, "several queues (IFF_MULTI_QUEUE)"}};
  unsigned features = 0;
  if (::ioctl(fd, TUNGETFEATURES, &features) < 0) {
    return unknown(kTapFeatures, failure("TUNGETFEATURES", errno));
  }
  std::string missing;
  for (const Feature& feature : kFeatures) {
    if ((features & feature.flag) == 0) {
      missing += fmt::format("{}{}", missing.empty() ? "lacks: " : ", ", feature.name);
    }
  }
  return missing.empty() ? found(kTapFeatures, "available") : lacking(kTapFeatures, missing);
}

/// Asked of the process's capabilities: an interface, even for a moment, would be seen by others.
Finding check_tap_create() {
  __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> data = {};
  if (::syscall(SYS_capget, &header, data.data()) < 0) {
    return unknown(kTapCreate, failure("capget", errno));
  }
  const bool permitted =
      (data[CAP_TO_INDEX(CAP_NET_ADMIN)].effective & CAP_TO_MASK(CAP_NET_ADMIN)) != 0;
  return permitted ? found(kTapCreate, "permitted") : lacking(kTapCreate, "not permitted");
}

struct Limit {
  Check check;
  __rlimit_resource resource;
  rlim_t wanted;
  bool in_bytes = false;
};

constexpr auto kLimits = std::to_array<Limit>({
    {{"limit_open_files", "open files (RLIMIT_NOFILE)",
      "a VM with many devices and connections ends up without descriptors (status 71)",
      "ulimit -n 4096, LimitNOFILE= of the service, or [limits] rlimits"},
     RLIMIT_NOFILE,
     1024},
    {{"limit_threads", "threads of the user (RLIMIT_NPROC)",
      "VMs with many vCPUs do not start (status 71)",
      "ulimit -u 4096, or LimitNPROC= of the service"},
     RLIMIT_NPROC,
     256},
    {{"limit_locked_memory", "locked memory (RLIMIT_MEMLOCK)",
      "memory cannot be registered with io_uring, and is looked up for each operation",
      "ulimit -l 65536 (in KiB), or LimitMEMLOCK= of the service"},
     RLIMIT_MEMLOCK,
     rlim_t{8} << 20,
     true},
    {{"limit_address_space", "address space (RLIMIT_AS)",
      "guests whose memory reaches this limit do not start (status 71)",
      "ulimit -v unlimited, or LimitAS=infinity of the service"},
     RLIMIT_AS,
     RLIM_INFINITY,
     true},
    {{"limit_file_size", "size of files (RLIMIT_FSIZE)",
      "writes of the guest beyond it fail, and so do logs and snapshots",
      "ulimit -f unlimited, or LimitFSIZE=infinity of the service"},
     RLIMIT_FSIZE,
     RLIM_INFINITY,
     true},
});

std::string format_limit(const Limit& limit, rlim_t value) {
  if (value == RLIM_INFINITY) {
    return "unlimited";
  }
  return limit.in_bytes ? format_size(value) : fmt::format("{}", value);
}

Finding check_limit(const Limit& limit) {
  rlimit value = {};
  if (::getrlimit(limit.resource, &value) < 0) {
    return unknown(limit.check, failure("getrlimit", errno));
  }
  if (value.rlim_cur == RLIM_INFINITY) {
    return found(limit.check, "unlimited");
  }
  const std::string text = fmt::format(
      "{}, {}", format_limit(limit, value.rlim_cur),
      value.rlim_max == value.rlim_cur
          ? "and not to be raised by the user"
          : fmt::format("which the user may raise to {}", format_limit(limit, value.rlim_max)));
  Finding finding =
      value.rlim_cur >= limit.wanted ? found(limit.check, text) : lacking(limit.check, text);
  finding.number = value.rlim_cur;
  return finding;
}

/// Our own directory in the hierarchy of cgroup v2. Errors: kMissingInput where there is none;
/// others where that could not be found out.
Result<std::string> own_directory() {
  TRY_ASSIGN(const std::string group, own_cgroup());
  TRY_ASSIGN(const std::string mount, cgroup_mount());
  return mount + (group == "/" ? "" : group);
}

Finding check_cgroup(const Result<std::string>& directory) {
  if (!directory) {
    const Error& error = directory.error();
    return error.code() == ErrorCode::kMissingInput && error.errnum() == 0
               ? lacking(kCgroup, error.message())
               : unknown(kCgroup, error.message());
  }
  for (const std::string& path : {*directory, *directory + "/cgroup.procs"}) {
    if (::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) < 0) {
      return lacking(kCgroup, failure(path, errno));
    }
  }
  return found(kCgroup, *directory + " is ours to write");
}

Finding check_controllers(const Result<std::string>& directory) {
  if (!directory) {
    return unknown(kControllers, "not asked, since there is no control group to ask");
  }
  const Result<std::string> controllers =
      read_small_text(AT_FDCWD, *directory + "/cgroup.controllers");
  if (!controllers) {
    return unknown(kControllers, controllers.error().message());
  }
  const std::string words = fmt::format(" {} ", *controllers);
  std::string missing;
  for (const std::string_view wanted : {"memory", "cpu", "pids", "io"}) {
    if (words.find(fmt::format(" {} ", wanted)) == std::string::npos) {
      missing += fmt::format("{}{}", missing.empty() ? "lacks: " : ", ", wanted);
    }
  }
  return missing.empty() ? found(kControllers, *controllers) : lacking(kControllers, missing);
}

}  // namespace

Section check_system() {
  return {.id = "system", .title = "System", .findings = {check_kernel()}};
}

Section check_network() {
  Section section = {.id = "network", .title = "Network"};
  std::vector<Finding>& findings = section.findings;
  const Result<UniqueFd> tun = open_file("/dev/net/tun", O_RDWR);
  findings.push_back(tun ? found(kTap, "/dev/net/tun opens")
                         : lacking(kTap, tun.error().message()));
  findings.push_back(tun ? check_tap_features(tun->get())
                         : unknown(kTapFeatures, "not asked, since the device does not open"));
  findings.push_back(check_tap_create());
  return section;
}

Section check_limits() {
  Section section = {.id = "limits", .title = "Limits"};
  for (const Limit& limit : kLimits) {
    section.findings.push_back(check_limit(limit));
  }
  const Result<std::string> directory = own_directory();
  section.findings.push_back(check_cgroup(directory));
  section.findings.push_back(check_controllers(directory));
  return section;
}

}  // namespace vireo
