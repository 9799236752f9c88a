// SPDX-License-Identifier: Apache-2.0
#include "src/landlock.h"

#include <cerrno>
#include <cstdint>

#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace vireo {

namespace {

// linux/landlock.h of Linux 6.1 ends with the second version; the numbers are the kernel's for
// good.
constexpr std::uint64_t kVersion1 = (std::uint64_t{1} << 13) - 1;  // EXECUTE … MAKE_SYM
constexpr std::uint64_t kRefer = std::uint64_t{1} << 13;           // version 2
constexpr std::uint64_t kTruncate = std::uint64_t{1} << 14;        // version 3
constexpr std::uint64_t kIoctlDev = std::uint64_t{1} << 15;        // version 5
constexpr std::uint64_t kTcp = 0b11;                               // version 4: bind, connect
constexpr std::uint64_t kScopes = 0b11;  // version 6: abstract sockets, signals

/// struct landlock_ruleset_attr of version 6.
struct RulesetAttr {
  std::uint64_t handled_access_fs = 0;
  std::uint64_t handled_access_net = 0;
  std::uint64_t scoped = 0;
};

std::uint64_t file_accesses(long version) {
  return kVersion1 | (version >= 2 ? kRefer : 0) | (version >= 3 ? kTruncate : 0) |
         (version >= 5 ? kIoctlDev : 0);
}

Result<> allow(int rules, int path, std::uint64_t accesses) {
  const landlock_path_beneath_attr rule = {.allowed_access = accesses, .parent_fd = path};
  if (::syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0) {
    return fail_errno(errno, "sandbox: landlock_add_rule");
  }
  return {};
}

}  // namespace

Result<UniqueFd> make_landlock_rules(const SandboxPaths& paths) {
  const long version =
      ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (version < 1) {
    return UniqueFd();
  }
  const std::uint64_t all = file_accesses(version);
  const RulesetAttr attr = {.handled_access_fs = all,
                            .handled_access_net = version >= 4 ? kTcp : 0,
                            .scoped = version >= 6 ? kScopes : 0};
  // An older kernel takes the part of the structure that it knows.
  const std::size_t size = version >= 6   ? sizeof(attr)
                           : version >= 4 ? 2 * sizeof(std::uint64_t)
                                          : sizeof(std::uint64_t);
  UniqueFd rules(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &attr, size, 0)));
  if (!rules) {
    return fail_errno(errno, "sandbox: landlock_create_ruleset");
  }
  constexpr std::uint64_t kRemoving =
      LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR;
  constexpr std::uint64_t kWriting = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG |
                                     LANDLOCK_ACCESS_FS_REMOVE_FILE | kTruncate;
  constexpr std::uint64_t kOpening =
      LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | kIoctlDev;
  for (const int directory : paths.removal) {
    TRY(allow(rules.get(), directory, kRemoving));
  }
  for (const int directory : paths.writing) {
    TRY(allow(rules.get(), directory, kWriting & all));
  }
  for (const int path : paths.opening) {
    TRY(allow(rules.get(), path, kOpening & all));
  }
  return rules;
}

}  // namespace vireo
