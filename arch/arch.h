// SPDX-License-Identifier: Apache-2.0
// What portable code asks of an architecture. Each function is implemented once per architecture,
// under arch/<name>/; the build links one of them.
//
// The order: required_capabilities → ram_ranges → (memory slots) → create_interrupt_controllers →
// make_cpu_model → for each vCPU setup_vcpu, and setup_boot_vcpu for the first; or, from a
// snapshot, restore_kvm_machine, and for each vCPU restore_vcpu.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/base/address.h"
#include "src/base/error.h"
#include "src/kvm/vm.h"
#include "src/memory/guest_memory.h"
#include "src/snapshot/snapshot.h"

namespace vireo::arch {

/// sockets × cores × threads is the number of vCPUs.
struct CpuTopology {
  unsigned sockets = 1;
  unsigned cores = 1;
  unsigned threads = 1;
};

struct CpuConfig {
  unsigned count = 1;  ///< 1–64
  CpuTopology topology;
  /// "-name" takes a feature of KVM's away, "+name" insists on one; names of /proc/cpuinfo.
  std::vector<std::string> features;
};

/// What every vCPU of a machine shows its guest; made once. Opaque to portable code.
class CpuModel {
 public:
  virtual ~CpuModel() = default;
};

enum class BootProtocol : std::uint8_t {
  kLinux64,  ///< Linux's 64-bit boot protocol: entry in long mode, RSI = zero page
  kPvh,      ///< PVH: entry in 32-bit protected mode, EBX = hvm_start_info
};

/// Where the first vCPU begins.
struct EntryPoint {
  BootProtocol protocol = BootProtocol::kLinux64;
  GuestAddress address;
  GuestAddress parameters;  ///< zero page or hvm_start_info
};

/// A virtio-mmio window, for the tables that describe it to the guest.
struct MmioDevice {
  GuestAddress address;
  std::uint64_t size = 0;
  std::uint32_t gsi = 0;
  bool operator==(const MmioDevice&) const = default;
};

/// The two kinds of guest code, which some KVMs run at very different speeds.
enum class GuestPrivilege : std::uint8_t { kKernel, kUser };

struct PlatformConfig {
  std::span<const std::uint32_t> cpu_ids;  ///< of all vCPUs, by index
  std::span<const MmioDevice> mmio_devices;
  bool pci = false;                                 ///< there is a PCI bus, in layout's windows
  std::array<std::uint8_t, 16> uuid = {};           ///< RFC 4122 byte order
  std::array<std::uint8_t, 16> generation_id = {};  ///< random: the guest is told when it changes
};

/// Where write_platform_tables() puts the generation id.
GuestAddress generation_id_address();

/// What KVM must have, by name.
std::span<const KvmCapability> required_capabilities();

/// Guest RAM of `size` bytes, around the hole for devices.
std::vector<GuestRange> ram_ranges(std::uint64_t size);

/// The number by which the processor interconnect and KVM_CREATE_VCPU know vCPU `index`.
std::uint32_t cpu_id(const CpuTopology& topology, unsigned index);

/// The width of a guest-physical address that KVM gives its guests, in bits.
Result<unsigned> physical_address_bits(const KvmVm& vm);

/// The in-kernel interrupt controllers; after the memory slots.
Result<> create_interrupt_controllers(KvmVm& vm);

/// Lets KVM report model-specific registers that it does not know, for the exit profile: vCPUs then
/// leave by KVM_EXIT_X86_RDMSR and _WRMSR. Before the first vCPU.
Result<> report_unknown_msrs(const KvmVm& vm);

/// Errors: kConfig for a feature that is unknown, or that this host's KVM cannot give.
Result<std::unique_ptr<CpuModel>> make_cpu_model(const KvmVm& vm, const CpuConfig& config);

/// What vCPU `id` is and knows before its first instruction, except its registers.
Result<> setup_vcpu(int vcpu_fd, const CpuModel& model, std::uint32_t id);

/// Registers of the first vCPU, and the tables in guest memory that they point to.
Result<> setup_boot_vcpu(int vcpu_fd, GuestMemory& memory, const EntryPoint& entry);

/// What the vCPUs and the interrupt controllers were before the first instruction. Opaque.
class ResetState {
 public:
  virtual ~ResetState() = default;
};

/// Reads it: after setup_vcpu() of each, before any has run.
Result<std::unique_ptr<ResetState>> capture_reset_state(const KvmVm& vm,
                                                        std::span<const int> vcpu_fds);
/// Puts all of them back, but for the boot vCPU's registers: setup_boot_vcpu() is next. While no
/// vCPU runs and no port or MMIO access is pending.
Result<> restore_reset_state(const KvmVm& vm, std::span<const int> vcpu_fds,
                             const ResetState& state);

/// Saves what KVM has of the vCPUs and of the machine in sections. While no vCPU runs, and no port
/// or MMIO access is pending. Errors: kConfig for what cannot be saved.
Result<> save_kvm_state(const KvmVm& vm, std::span<const int> vcpu_fds, const CpuModel& model,
                        SnapshotWriter& writer);
/// What vCPUs of a saved machine showed, without what `config` masks. Errors: kBadInput, with the
/// names of the features that this host lacks: `host` is make_cpu_model()'s.
Result<std::unique_ptr<CpuModel>> restore_cpu_model(const CpuModel& host, const CpuConfig& config,
                                                    SnapshotReader& reader);
/// The interrupt controllers and the clock as they were saved, the time since then added; before
/// the vCPUs.
Result<> restore_kvm_machine(const KvmVm& vm, SnapshotReader& reader);
/// In place of setup_vcpu(): vCPU `index`, known to the guest by `id`, as it was saved.
Result<> restore_vcpu(const KvmVm& vm, int vcpu_fd, const CpuModel& model, std::uint32_t id,
                      std::uint32_t index, SnapshotReader& reader);

/// A non-maskable interrupt for vCPU `id`. Any thread.
Result<> inject_nmi(const KvmVm& vm, std::uint32_t id);

/// ACPI and SMBIOS tables; returns the address of the RSDP.
Result<GuestAddress> write_platform_tables(GuestMemory& memory, const PlatformConfig& config);

/// Memory at address 0 that setup_counting_vcpu() wants at least, in bytes.
inline constexpr std::uint64_t kCountingMemory = 0x10000;

/// Makes the vCPU, already through setup_vcpu(), one that counts for ever at `privilege`, with no
/// exit of its own: for measuring. Writes its tables and code into `memory`.
Result<> setup_counting_vcpu(int vcpu_fd, GuestMemory& memory, GuestPrivilege privilege);
/// How many instructions of its loop that vCPU has run; while it is not in KVM_RUN.
Result<std::uint64_t> counted_instructions(int vcpu_fd);
/// Runs so many (2 or more) instructions of such a loop on the host itself, to compare with.
void count_on_host(std::uint64_t instructions);

}  // namespace vireo::arch
