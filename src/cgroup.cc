// SPDX-License-Identifier: Apache-2.0
#include "src/cgroup.h"

#include <cerrno>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include "src/base/fd.h"

namespace vireo {

Result<std::string> cgroup_mount() {
  for (const char* const mount : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
    struct statfs status = {};
    if (::statfs(mount, &status) < 0) {
      if (errno == ENOENT) {
        continue;
      }
      return std::unexpected(Error::from_errno(errno, mount).with_code(ErrorCode::kSystem));
    }
    if (status.f_type == CGROUP2_SUPER_MAGIC) {
      return mount;
    }
  }
  return fail(ErrorCode::kMissingInput, "cgroup v2 is not mounted at /sys/fs/cgroup");
}

Result<std::string> own_cgroup() {
  constexpr std::string_view kV2 = "0::";
  TRY_ASSIGN(const std::string groups, read_small_text(AT_FDCWD, "/proc/self/cgroup"));
  const std::size_t line = groups.starts_with(kV2) ? 0 : groups.find("\n0::");
  if (line == std::string::npos) {
    return fail(ErrorCode::kMissingInput, "/proc/self/cgroup: no group of cgroup v2");
  }
  const std::size_t start = groups.find(kV2, line) + kV2.size();
  return groups.substr(start, groups.find('\n', start) - start);
}

}  // namespace vireo
