// SPDX-License-Identifier: Apache-2.0
// What each vCPU is before its first instruction: CPUID and the few MSRs that firmware sets.
#include "arch/x86_64/vcpu_setup.h"

#include <cstdint>
#include <cstring>
#include <utility>

#include "arch/x86_64/kvm_entries.h"
#include "src/kvm/uapi.h"

namespace vireo::arch {

namespace {

constexpr std::uint32_t kMsrMiscEnable = 0x1a0;
constexpr std::uint64_t kMiscEnableFastString = 1;
constexpr std::uint32_t kMsrMtrrDefType = 0x2ff;
constexpr std::uint64_t kMtrrEnableWriteBack = 1U << 11 | 6;

constexpr std::uint32_t kMaxEntries = 1024;

class X86CpuModel final : public CpuModel {
 public:
  CpuTopology topology;
  CpuidTable table;
};

const X86CpuModel& x86(const CpuModel& model) {
  // An architecture's VMs have no other.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-static-cast-downcast)
  return static_cast<const X86CpuModel&>(model);
}

Result<CpuidTable> supported_cpuid(int kvm_fd) {
  for (std::uint32_t count = 128; count <= kMaxEntries; count *= 2) {
    CpuidBuffer buffer(count);
    buffer.header().nent = count;
    if (::ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, &buffer.header()) == 0) {
      return CpuidTable(buffer.entries(), buffer.entries() + buffer.header().nent);
    }
    if (errno != E2BIG) {
      return fail_errno(errno, "KVM_GET_SUPPORTED_CPUID");
    }
  }
  return fail(ErrorCode::kNoKvm, "KVM_GET_SUPPORTED_CPUID: more entries than a CPU can have");
}

Result<> set_msrs(int vcpu_fd) {
  MsrBuffer msrs(2);
  msrs.header().nmsrs = 2;
  msrs.entries()[0] = {.index = kMsrMiscEnable, .data = kMiscEnableFastString};
  msrs.entries()[1] = {.index = kMsrMtrrDefType, .data = kMtrrEnableWriteBack};
  TRY_ASSIGN(const int set, try_ioctl(vcpu_fd, KVM_SET_MSRS, &msrs.header(), "KVM_SET_MSRS"));
  if (set != 2) {
    return fail(ErrorCode::kNoKvm,
                "KVM_SET_MSRS: KVM refuses IA32_MISC_ENABLE or IA32_MTRR_DEF_TYPE");
  }
  return {};
}

}  // namespace

Result<unsigned> physical_address_bits(const KvmVm& vm) {
  TRY_ASSIGN(CpuidTable table, supported_cpuid(vm.kvm_fd()));
  const kvm_cpuid_entry2* const sizes = find_leaf(table, 0x80000008);
  return sizes != nullptr ? sizes->eax & 0xffU : 36U;
}

Result<std::unique_ptr<CpuModel>> make_cpu_model(const KvmVm& vm, const CpuConfig& config) {
  TRY_ASSIGN(CpuidTable table, supported_cpuid(vm.kvm_fd()));
  const int tsc_khz = ::ioctl(vm.fd(), KVM_GET_TSC_KHZ, 0UL);
  TRY(make_guest_cpuid(table, config,
                       {.tsc_khz = tsc_khz > 0 ? static_cast<std::uint32_t>(tsc_khz) : 0,
                        .tsc_deadline = vm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0}));
  return make_cpu_model(std::move(table), config.topology);
}

const CpuidTable& table_of(const CpuModel& model) {
  return x86(model).table;
}

std::unique_ptr<CpuModel> make_cpu_model(CpuidTable table, const CpuTopology& topology) {
  auto model = std::make_unique<X86CpuModel>();
  model->topology = topology;
  model->table = std::move(table);
  return model;
}

Result<> set_cpuid(int vcpu_fd, const CpuModel& model, std::uint32_t id) {
  CpuidTable table = table_of(model);
  set_cpu_id(table, x86(model).topology, id);
  CpuidBuffer buffer(table.size());
  buffer.header().nent = static_cast<std::uint32_t>(table.size());
  std::memcpy(buffer.entries(), table.data(), table.size() * sizeof(kvm_cpuid_entry2));
  TRY(try_ioctl(vcpu_fd, KVM_SET_CPUID2, &buffer.header(), "KVM_SET_CPUID2"));
  return {};
}

Result<> setup_vcpu(int vcpu_fd, const CpuModel& model, std::uint32_t id) {
  TRY(set_cpuid(vcpu_fd, model, id));
  return set_msrs(vcpu_fd);
}

}  // namespace vireo::arch
