// SPDX-License-Identifier: Apache-2.0
// The lines about KVM: the device, what it can do, and how fast it runs a guest's code.
#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <utility>

#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <fmt/core.h>

#include "arch/arch.h"
#include "src/base/fd.h"
#include "src/doctor_checks.h"
#include "src/doctor_speed.h"
#include "src/kvm/uapi.h"
#include "src/kvm/vm.h"

namespace vireo {

namespace {

constexpr const char* kDevice = "/dev/kvm";
constexpr const char* kHardwareKvm =
    "run on a host whose KVM uses VT-x or AMD-V; inside a VM, have its provider turn nested "
    "virtualization on";
constexpr const char* kNewerKernel = "a host kernel of 6.1 or newer";

constexpr Check kKvmDevice = {
    "kvm_device", "KVM device", "no VM runs",
    "turn VT-x or AMD-V on in the firmware (inside a VM: nested virtualization) and load the "
    "module "
    "kvm_intel or kvm_amd; in a container or chroot, bring the node /dev/kvm into it"};
constexpr Check kKvmDeviceDenied = {kKvmDevice.id, kKvmDevice.title, kKvmDevice.cost,
                                    "add the user to the group that owns /dev/kvm (usermod -aG kvm "
                                    "USER), or give vireo a node that "
                                    "the user may open"};
constexpr Check kApiVersion = {"kvm_api_version", "KVM API", "no VM runs",
                               "/dev/kvm is not KVM's own device: mknod /dev/kvm c 10 232"};
constexpr Check kFlavour = {"kvm_flavour", "KVM flavour",
                            "guest kernels run by interpretation: see their speed below",
                            kHardwareKvm};
constexpr Check kRequired = {"kvm_required_capabilities", "capabilities that vireo needs",
                             "no VM runs", kHardwareKvm};
constexpr Check kVm = {"kvm_vm", "creating a VM", "no VM runs",
                       "free memory, or end other VMs; the kernel's log may tell more"};
constexpr Check kMaxVcpus = {"kvm_max_vcpus", "vCPUs of one VM",
                             "machine.cpus reaches only as far as this", kNewerKernel};
constexpr Check kKernelSpeed = {
    "guest_kernel_speed", "guest kernel code",
    "kernel code is interpreted or emulated: Linux guests take minutes to boot, or crash (status "
    "12) at an instruction that the interpreter lacks",
    kHardwareKvm};
constexpr Check kUserSpeed = {
    "guest_user_speed", "guest user code",
    "programs in the guest are interpreted or emulated, and slow accordingly", kHardwareKvm};

/// A capability that a VM can do without.
struct OptionalCapability {
  int number;
  Check check;
  int wanted = ~0;  ///< bits of KVM's answer, any of which will do
};

constexpr auto kOptional = std::to_array<OptionalCapability>({
    {KVM_CAP_IRQFD,
     {"kvm_irqfd", "interrupts by eventfd (irqfd)",
      "each interrupt of a device is a system call of vireo's", kNewerKernel}},
    {KVM_CAP_IOEVENTFD,
     {"kvm_ioeventfd", "doorbells by eventfd (ioeventfd)",
      "each kick of a queue stops its vCPU until vireo has handled it", kNewerKernel}},
    {KVM_CAP_IRQ_ROUTING,
     {"kvm_irq_routing", "interrupt routing", "PCI devices have no MSI-X", kNewerKernel}},
    {KVM_CAP_SIGNAL_MSI,
     {"kvm_signal_msi", "message-signalled interrupts",
      "PCI devices have no MSI-X; virtio-mmio devices share the IOAPIC's 24 lines", kNewerKernel}},
    {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
     {"kvm_manual_dirty_log", "dirty log, protected by hand",
      "a diff snapshot pauses the guest while all of its memory is write-protected", kNewerKernel}},
    {KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
     {"kvm_dirty_ring", "dirty ring",
      "the pages that a guest changed are found by walking a bitmap of all its memory",
      kNewerKernel}},
    {KVM_CAP_X86_DISABLE_EXITS,
     {"kvm_disable_exits", "HLT, PAUSE and MWAIT without exits",
      "a vCPU that has a processor of its own still leaves the guest whenever it idles",
      "a KVM of VT-x or AMD-V; on AMD processors with SMT the mitigation kvm.mitigate_smt_rsb "
      "takes it away"},
     KVM_X86_DISABLE_EXITS_HLT},
    {KVM_CAP_BINARY_STATS_FD,
     {"kvm_stats_fd", "KVM's own statistics", "--profile, --metrics and --control are refused",
      kNewerKernel}},
    {KVM_CAP_X86_USER_SPACE_MSR,
     {"kvm_user_space_msr", "MSR exits", "--profile is refused", kNewerKernel}},
    {KVM_CAP_TSC_CONTROL,
     {"kvm_tsc_control", "TSC scaling",
      "a snapshot from a host with another TSC rate does not keep its TSC's",
      "a processor with TSC scaling: Intel server processors since Skylake, AMD since Bulldozer"}},
    {KVM_CAP_TSC_DEADLINE_TIMER,
     {"kvm_tsc_deadline_timer", "TSC deadline timer",
      "guests set their timers by the local APIC's counter, which is coarser", kNewerKernel}},
    {KVM_CAP_XSAVE2,
     {"kvm_xsave2", "saving processor state of any size (XSAVE2)",
      "guests are shown no AMX, whose state could not be saved", kNewerKernel}},
});

/// KVM_CHECK_EXTENSION: what KVM answers, or -1 with errno.
int extension(int kvm_fd, int capability) {
  return ::ioctl(kvm_fd, KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability));
}

std::string extension_failure(int errnum) {
  return failure("KVM_CHECK_EXTENSION", errnum);
}

/// The modules of KVM, of which there is one for each kind of hardware support.
Finding check_flavour() {
  constexpr const char* kModules = "/sys/module";
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(kModules), ::closedir);
  if (!directory) {
    return unknown(kFlavour, failure(kModules, errno) + "; the speeds below tell");
  }
  std::string others;
  while (const dirent* const entry = ::readdir(directory.get())) {
    const std::string_view name = entry->d_name;
    if (name == "kvm_intel" || name == "kvm_amd") {
      return found(kFlavour, fmt::format("{}, {}", name, name == "kvm_intel" ? "VT-x" : "AMD-V"));
    }
    if (name.starts_with("kvm_")) {
      others += fmt::format("{}{}", others.empty() ? "" : ", ", name);
    }
  }
  return lacking(kFlavour,
                 others.empty()
                     ? "neither kvm_intel nor kvm_amd is loaded"
                     : fmt::format("{}: a software KVM, neither kvm_intel nor kvm_amd", others));
}

Finding check_required(int kvm_fd) {
  std::string missing;
  std::string reason;
  const std::span<const KvmCapability> required = arch::required_capabilities();
  for (const KvmCapability& capability : required) {
    const int answer = extension(kvm_fd, capability.number);
    if (answer <= 0) {
      missing += fmt::format("{}{}", missing.empty() ? "lacks " : ", ", capability.name);
      reason = answer < 0 ? fmt::format(" ({})", extension_failure(errno)) : "";
    }
  }
  if (missing.empty()) {
    return found(kRequired, fmt::format("all {}", required.size()), required.size());
  }
  return blocking(kRequired, missing + reason, ErrorCode::kNoKvm);
}

Finding check_vm() {
  const auto vm = KvmVm::create(kDevice, {});
  return vm ? found(kVm, "works") : blocking(kVm, vm.error().message(), vm.error().code());
}

Finding check_max_vcpus(int kvm_fd) {
  constexpr int kWanted = 64;
  const int answer = extension(kvm_fd, KVM_CAP_MAX_VCPUS);
  if (answer < 0) {
    return unknown(kMaxVcpus, extension_failure(errno));
  }
  Finding finding =
      answer >= kWanted
          ? found(kMaxVcpus, fmt::format("{}, of which vireo uses up to {}", answer, kWanted))
          : lacking(kMaxVcpus, fmt::format("{}, where vireo could use {}", answer, kWanted));
  finding.number = static_cast<std::uint64_t>(answer);
  return finding;
}

Finding check_optional(int kvm_fd, const OptionalCapability& capability) {
  const int answer = extension(kvm_fd, capability.number);
  if (answer < 0) {
    return unknown(capability.check, extension_failure(errno));
  }
  if ((answer & capability.wanted) == 0) {
    return lacking(capability.check, "KVM does not have it");
  }
  return found(capability.check, "KVM offers it", static_cast<std::uint64_t>(answer));
}

std::string format_speed(std::uint64_t per_second) {
  const auto millions = static_cast<double>(per_second) / 1e6;
  return millions < 1000 ? fmt::format("{:.1f} million instructions/s", millions)
                         : fmt::format("{:.2f} billion instructions/s", millions / 1000);
}

Finding check_speed(const Check& check, arch::GuestPrivilege privilege, std::uint64_t host) {
  /// Native code keeps pace with the host's; what is interpreted is slower by far more than this.
  constexpr std::uint64_t kSlower = 4;
  const Result<std::uint64_t> speed = measure_guest_speed(privilege);
  if (!speed) {
    return blocking(check, speed.error().message(), speed.error().code());
  }
  const std::string pace = format_speed(*speed);
  Finding finding =
      *speed < host / kSlower
          ? lacking(check,
                    fmt::format("{}, 1/{} of the host's own {}: interpreted or emulated", pace,
                                host / std::max<std::uint64_t>(*speed, 1), format_speed(host)))
          : found(check, fmt::format("{}, {} % of the host's own: native", pace,
                                     *speed * 100 / std::max<std::uint64_t>(host, 1)));
  finding.number = *speed;
  return finding;
}

Finding check_device(const Result<UniqueFd>& device) {
  if (device) {
    return found(kKvmDevice, fmt::format("{} opens for reading and writing", kDevice));
  }
  const Error& error = device.error();
  const bool denied = error.code() == ErrorCode::kPermission;
  return blocking(denied ? kKvmDeviceDenied : kKvmDevice, error.message(),
                  denied ? ErrorCode::kPermission : ErrorCode::kNoKvm);
}

Finding check_api_version(int kvm_fd) {
  const int version = ::ioctl(kvm_fd, KVM_GET_API_VERSION, 0UL);
  if (version < 0) {
    return blocking(kApiVersion, failure("KVM_GET_API_VERSION", errno), ErrorCode::kNoKvm);
  }
  Finding finding =
      version == KVM_API_VERSION
          ? found(kApiVersion, fmt::format("version {}", version))
          : blocking(kApiVersion, fmt::format("version {} instead of {}", version, KVM_API_VERSION),
                     ErrorCode::kNoKvm);
  finding.number = static_cast<std::uint64_t>(version);
  return finding;
}

/// The lines that stand there also where there is no KVM to ask.
void add_not_asked(std::vector<Finding>& findings) {
  constexpr const char* kWhy = "not asked, since there is no KVM to ask";
  findings.push_back(unknown(kRequired, kWhy));
  findings.push_back(unknown(kVm, kWhy));
  findings.push_back(unknown(kMaxVcpus, kWhy));
  for (const OptionalCapability& capability : kOptional) {
    findings.push_back(unknown(capability.check, kWhy));
  }
  findings.push_back(unknown(kKernelSpeed, kWhy));
  findings.push_back(unknown(kUserSpeed, kWhy));
}

}  // namespace

Section check_kvm() {
  Section section = {.id = "kvm", .title = "KVM"};
  std::vector<Finding>& findings = section.findings;
  const Result<UniqueFd> device = open_file(kDevice, O_RDWR);
  findings.push_back(check_device(device));
  findings.push_back(device ? check_api_version(device->get())
                            : unknown(kApiVersion, "not asked, since the device does not open"));
  findings.push_back(check_flavour());
  if (std::ranges::any_of(findings,
                          [](const Finding& finding) { return finding.blocker.has_value(); })) {
    add_not_asked(findings);
    return section;
  }
  const int kvm_fd = device->get();
  findings.push_back(check_required(kvm_fd));
  findings.push_back(check_vm());
  findings.push_back(check_max_vcpus(kvm_fd));
  for (const OptionalCapability& capability : kOptional) {
    findings.push_back(check_optional(kvm_fd, capability));
  }
  const std::uint64_t host = measure_host_speed();
  findings.push_back(check_speed(kKernelSpeed, arch::GuestPrivilege::kKernel, host));
  findings.push_back(check_speed(kUserSpeed, arch::GuestPrivilege::kUser, host));
  return section;
}

}  // namespace vireo
