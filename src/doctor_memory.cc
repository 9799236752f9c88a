// SPDX-License-Identifier: Apache-2.0
// The lines about memory: what may back a guest's RAM, and what can watch it.
#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/fd.h"
#include "src/doctor_checks.h"
#include "src/memory/userfault.h"

namespace vireo {

namespace {

constexpr Check kTransparent = {"transparent_huge_pages", "transparent huge pages",
                                "machine.hugepages = \"transparent\" has no effect or is refused: "
                                "guests fault for each page of "
                                "4 KiB, and miss the TLB more often",
                                "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"};
constexpr Check kHuge2M = {
    "huge_pages_2m", "huge pages of 2 MiB", "machine.hugepages = \"2M\" is refused",
    "echo N > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, 512 for each GiB of guests"};
constexpr Check kHuge1G = {
    "huge_pages_1g", "huge pages of 1 GiB", "machine.hugepages = \"1G\" is refused",
    "boot the host with hugepagesz=1G hugepages=N, one for each GiB of guests"};
constexpr Check kMerging = {"same_page_merging", "same-page merging (KSM)",
                            "machine.mergeable has no effect or is refused: equal pages of guests "
                            "are each kept",
                            "a kernel with CONFIG_KSM, and echo 1 > /sys/kernel/mm/ksm/run"};
constexpr Check kMemfd = {"memfd", "memory files (memfd)",
                          "memory cannot be shared with another process, as virtiofs with DAX and "
                          "forks of a VM want it",
                          "memfd_create in the container's seccomp profile"};
constexpr Check kUserfaultfd = {
    "userfaultfd", "userfaultfd, KVM's faults included",
    "restore --memory fill, and that of a compressed snapshot, read all memory before the guest "
    "goes on",
    "give the user /dev/userfaultfd or CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1"};
constexpr Check kUserfaultfdFeatures = {
    "userfaultfd_features", "kinds of fault that userfaultfd tells",
    "memory is not copied while its guest runs: a fork pauses it for longer",
    "a host kernel of 6.1 or newer"};

/// Address space of `size` bytes, of `flags` beside the usual ones; it is given back at once.
Result<Mapping> map_memory(std::size_t size, int flags) {
  return Mapping::create(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0,
                         "mmap");
}

/// Whether the kernel takes the advice, tried on a range of memory made for that.
Result<> advise(int advice, const char* name) {
  constexpr std::size_t kSize = std::size_t{4} << 20;
  TRY_ASSIGN(const Mapping mapping, map_memory(kSize, MAP_NORESERVE));
  if (::madvise(mapping.data(), mapping.size(), advice) < 0) {
    return fail_errno(errno, fmt::format("madvise, {}", name));
  }
  return {};
}

Finding check_transparent() {
  if (const Result<> taken = advise(MADV_HUGEPAGE, "MADV_HUGEPAGE"); !taken) {
    return lacking(kTransparent, taken.error().message());
  }
  if (::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) > 0) {
    return lacking(kTransparent, "switched off for this process (PR_SET_THP_DISABLE)");
  }
  const Result<std::string> mode =
      read_small_text(AT_FDCWD, "/sys/kernel/mm/transparent_hugepage/enabled");
  if (!mode) {
    return unknown(kTransparent, mode.error().message());
  }
  return mode->find("[never]") == std::string::npos ? found(kTransparent, *mode)
                                                    : lacking(kTransparent, *mode);
}

/// One page is reserved and given back, which is what a VM does with all of its own.
Finding check_huge(const Check& check, unsigned size_log2) {
  const std::size_t size = std::size_t{1} << size_log2;
  const Result<Mapping> page =
      map_memory(size, MAP_HUGETLB | static_cast<int>(size_log2 << MAP_HUGE_SHIFT));
  if (!page) {
    return lacking(check, page.error().message());
  }
  const Result<std::string> free = read_small_text(
      AT_FDCWD, fmt::format("/sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages", size >> 10));
  return found(check, free ? fmt::format("{} are free", *free) : "one or more can be had");
}

Finding check_merging() {
  if (const Result<> taken = advise(MADV_MERGEABLE, "MADV_MERGEABLE"); !taken) {
    return lacking(kMerging, taken.error().message());
  }
  constexpr const char* kRun = "/sys/kernel/mm/ksm/run";
  const Result<std::string> run = read_small_text(AT_FDCWD, kRun);
  if (!run) {
    return unknown(kMerging, run.error().message());
  }
  return *run == "1" ? found(kMerging, "pages are being merged")
                     : lacking(kMerging, fmt::format("{} is {}: nothing merges pages", kRun, *run));
}

Finding check_memfd() {
  const UniqueFd file(::memfd_create("vireo-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  return file ? found(kMemfd, "available") : lacking(kMemfd, failure("memfd_create", errno));
}

Finding check_userfaultfd_features(int fd) {
  struct Kind {
    std::uint64_t feature;
    const char* name;
  };
  constexpr Kind kKinds[] = {{UFFD_FEATURE_PAGEFAULT_FLAG_WP, "write-protected"},
                             {UFFD_FEATURE_MISSING_SHMEM, "missing in shared memory"},
                             {UFFD_FEATURE_MINOR_SHMEM, "minor in shared memory"},
                             {UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "write-protected in shared memory"}};
  uffdio_api api = {};
  api.api = UFFD_API;
  if (::ioctl(fd, UFFDIO_API, &api) < 0) {
    return unknown(kUserfaultfdFeatures, failure("UFFDIO_API", errno));
  }
  std::string missing;
  for (const Kind& kind : kKinds) {
    if ((api.features & kind.feature) == 0) {
      missing += fmt::format("{}{}", missing.empty() ? "lacks: " : ", ", kind.name);
    }
  }
  return missing.empty()
             ? found(kUserfaultfdFeatures, "missing, minor and write-protected, shared memory too")
             : lacking(kUserfaultfdFeatures, missing);
}

void add_userfaultfd(std::vector<Finding>& findings) {
  std::string way;
  const Result<UniqueFd> fd = open_userfaultfd(way);
  if (!fd) {
    findings.push_back(lacking(kUserfaultfd, fd.error().message()));
    findings.push_back(unknown(kUserfaultfdFeatures, "not asked, since there is no userfaultfd"));
    return;
  }
  findings.push_back(found(kUserfaultfd, way));
  findings.push_back(check_userfaultfd_features(fd->get()));
}

}  // namespace

Section check_memory() {
  constexpr unsigned k2MiBLog2 = 21;
  constexpr unsigned k1GiBLog2 = 30;
  Section section = {.id = "memory", .title = "Memory"};
  section.findings = {check_transparent(), check_huge(kHuge2M, k2MiBLog2),
                      check_huge(kHuge1G, k1GiBLog2), check_merging(), check_memfd()};
  add_userfaultfd(section.findings);
  return section;
}

}  // namespace vireo
