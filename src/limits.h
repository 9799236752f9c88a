// SPDX-License-Identifier: Apache-2.0
// Limits on the process: cgroup v2, resource limits, core scheduling, and which processors a vCPU
// may use. Each is read back after it was set; what the host does not give is refused by the key's
// name.
//
//   TRY(limits.apply(config.limits));               // before the VM is made
//   TRY(Limits::place_vcpu(config.limits, index));  // on each vCPU's thread
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

/// A soft and a hard limit; RLIM_INFINITY for none.
struct ResourceLimit {
  std::uint64_t soft = 0;
  std::uint64_t hard = 0;
};

struct LimitsConfig {
  /// Host processors: one list for all vCPUs or one for each; empty: all that the process has.
  std::vector<std::vector<unsigned>> cpu_affinity;
  bool core_scheduling = false;  ///< nobody else on a core's other threads
  std::map<std::string, ResourceLimit> rlimits;
  std::string cgroup;  ///< below the cgroup v2 mount, or absolute
  /// Files of the cgroup and what is written to them, by their names there: "memory.max".
  std::map<std::string, std::string> cgroup_files;
};

/// The number of a resource by its name in limits.rlimits ("nofile"), or -1.
int resource_number(const std::string& name);
/// The names that resource_number() knows, with a comma between.
std::string resource_names();

class Limits {
 public:
  Limits() = default;
  Limits(const Limits&) = delete;
  Limits& operator=(const Limits&) = delete;
  /// Leaves the cgroup, and removes it where it was made here.
  ~Limits();

  /// Everything that concerns the whole process. Main thread, while it is the only one; files and
  /// memory that come later are counted. Errors: kConfig or kPermission with the key.
  Result<> apply(const LimitsConfig& config);

  /// The directory in which the cgroup is removed at the end; -1 where none was made.
  int directory() const { return made_.empty() ? -1 : parent_.get(); }

  /// Restricts the calling thread, which is vCPU `index`, to its processors.
  static Result<> place_vcpu(const LimitsConfig& config, unsigned index);

 private:
  Result<> enter_cgroup(const LimitsConfig& config);

  UniqueFd old_procs_;    // cgroup.procs of where the process came from
  UniqueFd old_subtree_;  // its cgroup.subtree_control, where the cgroup is below it
  UniqueFd parent_;       // the directory of the cgroup
  std::string made_;      // its name there; empty: it was there before
  /// What takes each controller back from the cgroups below parent_ that was given to them here.
  std::vector<std::string> enabled_;
};

}  // namespace vireo
