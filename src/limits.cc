// SPDX-License-Identifier: Apache-2.0
#include "src/limits.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <span>
#include <string_view>

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/cgroup.h"

namespace vireo {

namespace {

constexpr const char* kSubtreeControl = "cgroup.subtree_control";

struct Resource {
  std::string_view name;
  int number;
};
constexpr auto kResources = std::to_array<Resource>({{"as", RLIMIT_AS},
                                                     {"core", RLIMIT_CORE},
                                                     {"cpu", RLIMIT_CPU},
                                                     {"data", RLIMIT_DATA},
                                                     {"fsize", RLIMIT_FSIZE},
                                                     {"memlock", RLIMIT_MEMLOCK},
                                                     {"msgqueue", RLIMIT_MSGQUEUE},
                                                     {"nice", RLIMIT_NICE},
                                                     {"nofile", RLIMIT_NOFILE},
                                                     {"nproc", RLIMIT_NPROC},
                                                     {"rtprio", RLIMIT_RTPRIO},
                                                     {"rttime", RLIMIT_RTTIME},
                                                     {"sigpending", RLIMIT_SIGPENDING},
                                                     {"stack", RLIMIT_STACK}});

Result<> write_small(int directory, const std::string& name, std::string_view text) {
  const UniqueFd file(::openat(directory, name.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file || ::write(file.get(), text.data(), text.size()) < 0) {
    return fail_errno(errno, name);
  }
  return {};
}

Result<> set_rlimit(const std::string& name, const ResourceLimit& wanted) {
  const auto resource = static_cast<__rlimit_resource>(resource_number(name));
  const rlimit limit = {.rlim_cur = wanted.soft, .rlim_max = wanted.hard};
  const std::string key = "limits.rlimits." + name;
  if (::setrlimit(resource, &limit) < 0) {
    return fail_errno(errno, fmt::format("{}: {}:{}", key, wanted.soft, wanted.hard));
  }
  rlimit now = {};
  if (::getrlimit(resource, &now) < 0 || now.rlim_cur != limit.rlim_cur ||
      now.rlim_max != limit.rlim_max) {
    return fail(ErrorCode::kSystem, key + ": the kernel did not take it");
  }
  return {};
}

/// Core scheduling (Documentation/admin-guide/hw-vuln/core-scheduling.rst): a cookie of our own.
Result<> schedule_by_core() {
  constexpr unsigned long kThreadGroup = PR_SCHED_CORE_SCOPE_THREAD_GROUP;
  if (::prctl(PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, kThreadGroup, 0) < 0) {
    return fail(errno == EPERM ? ErrorCode::kPermission : ErrorCode::kConfig,
                errno == EINVAL || errno == ENODEV
                    ? "limits.core_scheduling: this kernel or processor has no core scheduling "
                      "(CONFIG_SCHED_CORE and SMT); remove it"
                    : Error::from_errno(errno, "limits.core_scheduling").message());
  }
  unsigned long cookie = 0;
  if (::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, 0, PR_SCHED_CORE_SCOPE_THREAD, &cookie) < 0 ||
      cookie == 0) {
    return fail(ErrorCode::kSystem, "limits.core_scheduling: the kernel did not take it");
  }
  return {};
}

/// The controller of a cgroup's file: what stands before its first dot.
std::string controller_of(const std::string& file) {
  return file.substr(0, file.find('.'));
}

/// Whether what the kernel shows is what was written. It rounds memory down to pages, and shows
/// io.max as one line for each device with all four numbers.
bool took(const std::string& file, std::string_view written, std::string_view shown) {
  if (file == "memory.max") {
    std::uint64_t wanted = 0;
    std::uint64_t now = 0;
    std::from_chars(written.data(), written.data() + written.size(), wanted);
    std::from_chars(shown.data(), shown.data() + shown.size(), now);
    return now == wanted / 4096 * 4096;
  }
  if (file == "io.max") {
    const std::string_view device = written.substr(0, written.find(' '));
    const std::size_t at = shown.find(device);
    if (at == std::string_view::npos) {
      return false;
    }
    const std::string_view line = shown.substr(at, shown.find('\n', at) - at);
    for (std::size_t begin = device.size() + 1; begin < written.size();) {
      const std::size_t end = std::min(written.find(' ', begin), written.size());
      if (line.find(written.substr(begin, end - begin)) == std::string_view::npos) {
        return false;
      }
      begin = end + 1;
    }
    return true;
  }
  return shown == written;
}

/// Gives the cgroup the file, which is there where its controller is enabled in the parent. True
/// where it had to be enabled.
Result<bool> provide_cgroup_file(int parent, int group, const std::string& file) {
  if (::faccessat(group, file.c_str(), F_OK, 0) == 0) {
    return false;
  }
  const std::string controller = controller_of(file);
  const Result<> enabled = write_small(parent, kSubtreeControl, "+" + controller);
  if (!enabled || ::faccessat(group, file.c_str(), F_OK, 0) < 0) {
    return fail(ErrorCode::kConfig,
                fmt::format("limits.cgroup: the {} controller is not delegated to it (wants "
                            "+{} in cgroup.subtree_control of its parent)",
                            controller, controller));
  }
  return true;
}

Result<> set_cgroup_file(int group, const std::string& file, const std::string& value) {
  if (Result<> written = write_small(group, file, value); !written) {
    return std::unexpected(std::move(written).error().context("limits.cgroup"));
  }
  TRY_ASSIGN(const std::string shown, read_small_text(group, file));
  if (!took(file, value, shown)) {
    return fail(ErrorCode::kSystem,
                fmt::format("limits.cgroup: {} is {} after {} was written", file, shown, value));
  }
  return {};
}

/// Whether `path` is the directory behind `fd`.
bool is_directory_of(int fd, const std::string& path) {
  struct stat by_fd = {};
  struct stat by_path = {};
  return ::fstat(fd, &by_fd) == 0 && ::stat(path.c_str(), &by_path) == 0 &&
         by_fd.st_ino == by_path.st_ino && by_fd.st_dev == by_path.st_dev;
}

/// What the host lacks of cgroup v2 is the configuration's to do without.
Result<std::string> for_key(Result<std::string> found) {
  if (!found) {
    return fail(ErrorCode::kConfig, "limits.cgroup: " + found.error().message());
  }
  return found;
}

}  // namespace

int resource_number(const std::string& name) {
  const auto* const found = std::ranges::find(kResources, name, &Resource::name);
  return found == kResources.end() ? -1 : found->number;
}

std::string resource_names() {
  std::string names;
  for (const Resource& resource : kResources) {
    names += names.empty() ? "" : ", ";
    names += resource.name;
  }
  return names;
}

Result<> Limits::apply(const LimitsConfig& config) {
  if (!config.cgroup.empty()) {
    TRY(enter_cgroup(config));
  }
  for (const auto& [name, limit] : config.rlimits) {
    TRY(set_rlimit(name, limit));
  }
  if (config.core_scheduling) {
    TRY(schedule_by_core());
  }
  return {};
}

Result<> Limits::enter_cgroup(const LimitsConfig& config) {
  TRY_ASSIGN(const std::string root, for_key(cgroup_mount()));
  TRY_ASSIGN(const std::string old, for_key(own_cgroup()));
  const std::string path =
      config.cgroup.starts_with('/') ? config.cgroup : fmt::format("{}/{}", root, config.cgroup);
  const std::size_t slash = path.rfind('/');
  const std::string name = path.substr(slash + 1);
  const std::string what = "limits.cgroup: " + path;
  UniqueFd parent(::open(path.substr(0, slash).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct statfs status = {};
  if (!parent) {
    return fail_errno(errno, what);
  }
  if (::fstatfs(parent.get(), &status) < 0 || status.f_type != CGROUP2_SUPER_MAGIC) {
    return fail(ErrorCode::kConfig, what + ": not below a mount of cgroup v2");
  }
  const std::string old_path = root + old;
  old_procs_ = UniqueFd(::open((old_path + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  if (::mkdirat(parent.get(), name.c_str(), 0755) == 0) {
    made_ = name;
  } else if (errno != EEXIST) {
    return fail(ErrorCode::kConfig,
                Error::from_errno(errno, what + ": it is not delegated to this user").message());
  }
  const UniqueFd group(::openat(parent.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!group) {
    return fail_errno(errno, what);
  }
  parent_ = std::move(parent);
  if (is_directory_of(parent_.get(), old_path)) {
    old_subtree_ = UniqueFd(::openat(parent_.get(), kSubtreeControl, O_WRONLY | O_CLOEXEC));
  }
  // First of all: what has a process in it gives controllers to none below it, and a service's own
  // cgroup has this process.
  if (Result<> entered = write_small(group.get(), "cgroup.procs", "0"); !entered) {
    return fail(ErrorCode::kConfig,
                fmt::format("{}: not delegated to this user: {}", what, entered.error().message()));
  }
  TRY_ASSIGN(const std::string now, for_key(own_cgroup()));
  if (!now.ends_with("/" + name)) {
    return fail(ErrorCode::kSystem, fmt::format("{}: the process is in {}", what, now));
  }
  for (const auto& [file, value] : config.cgroup_files) {
    TRY_ASSIGN(const bool enabled, provide_cgroup_file(parent_.get(), group.get(), file));
    if (enabled) {
      enabled_.push_back("-" + controller_of(file));
    }
    TRY(set_cgroup_file(group.get(), file, value));
  }
  return {};
}

Limits::~Limits() {
  if (made_.empty()) {
    return;
  }
  // As long as it gives controllers to others, there is no way back into it.
  if (old_subtree_) {
    for (const std::string& controller : enabled_) {
      [[maybe_unused]] const ssize_t size =
          ::write(old_subtree_.get(), controller.data(), controller.size());
    }
  }
  // A cgroup with a process in it cannot be removed; "0" is the process that writes.
  if (!old_procs_ || ::write(old_procs_.get(), "0", 1) == 1) {
    ::unlinkat(parent_.get(), made_.c_str(), AT_REMOVEDIR);
  }
}

Result<> Limits::place_vcpu(const LimitsConfig& config, unsigned index) {
  if (config.cpu_affinity.empty()) {
    return {};
  }
  const std::vector<unsigned>& cpus =
      config.cpu_affinity[config.cpu_affinity.size() == 1 ? 0 : index];
  cpu_set_t wanted;
  CPU_ZERO(&wanted);
  for (const unsigned cpu : cpus) {
    CPU_SET(cpu, &wanted);
  }
  const std::string key = fmt::format("limits.cpu_affinity: vCPU {}", index);
  if (::sched_setaffinity(0, sizeof(wanted), &wanted) < 0) {
    return fail(
        ErrorCode::kConfig,
        Error::from_errno(errno, key + ": this process may use none of its processors").message());
  }
  cpu_set_t now;
  if (::sched_getaffinity(0, sizeof(now), &now) < 0 || CPU_EQUAL(&now, &wanted) == 0) {
    return fail(ErrorCode::kConfig,
                key +
                    ": this process may not use all of its processors (offline, or outside the "
                    "cpuset)");
  }
  return {};
}

}  // namespace vireo
