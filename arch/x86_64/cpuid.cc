// SPDX-License-Identifier: Apache-2.0
// Leaves and bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; KVM's own in
// Documentation/virt/kvm/x86/cpuid.rst.
#include "arch/x86_64/cpuid.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include <fmt/core.h>

namespace vireo::arch {

namespace {

constexpr std::uint32_t kLeafFeatures = 0x1;
constexpr std::uint32_t kLeafCaches = 0x4;
constexpr std::uint32_t kLeafTopology = 0xb;
constexpr std::uint32_t kLeafTopologyV2 = 0x1f;
constexpr std::uint32_t kLeafTsc = 0x15;
constexpr std::uint32_t kLeafKvm = 0x40000000;
constexpr std::uint32_t kLeafTiming = 0x40000010;
constexpr std::uint32_t kLeafExtendedFeatures = 0x80000001;
constexpr std::uint32_t kLeafSizes = 0x80000008;
constexpr std::uint32_t kLeafSvm = 0x8000000a;
constexpr std::uint32_t kLeafAmdCaches = 0x8000001d;
constexpr std::uint32_t kLeafAmdTopology = 0x8000001e;

constexpr std::uint32_t kEcxVmx = 1U << 5;
constexpr std::uint32_t kEcxX2Apic = 1U << 21;
constexpr std::uint32_t kEcxTscDeadline = 1U << 24;
constexpr std::uint32_t kEcxHypervisor = 1U << 31;
constexpr std::uint32_t kEdxHtt = 1U << 28;
constexpr std::uint32_t kExtendedEcxCmpLegacy = 1U << 1;
constexpr std::uint32_t kExtendedEcxSvm = 1U << 2;

/// KVM's local APIC counts nanoseconds.
constexpr std::uint32_t kApicBusKhz = 1'000'000;

// Levels of leaf 0xb.
constexpr std::uint32_t kLevelSmt = 1;
constexpr std::uint32_t kLevelCore = 2;

unsigned bits_for(unsigned count) {
  return static_cast<unsigned>(std::bit_width(count - 1));
}

unsigned thread_bits(const CpuTopology& topology) {
  return bits_for(topology.threads);
}

unsigned package_bits(const CpuTopology& topology) {
  return thread_bits(topology) + bits_for(topology.cores);
}

std::uint32_t& register_of(kvm_cpuid_entry2& entry, CpuidRegister reg) {
  switch (reg) {
    case CpuidRegister::kEax:
      return entry.eax;
    case CpuidRegister::kEbx:
      return entry.ebx;
    case CpuidRegister::kEcx:
      return entry.ecx;
    case CpuidRegister::kEdx:
      return entry.edx;
  }
  std::unreachable();
}

bool is_amd(CpuidTable& table) {
  const kvm_cpuid_entry2* const vendor = find_leaf(table, 0);
  // "AuthenticAMD" and "HygonGenuine", by their first register.
  return vendor != nullptr && (vendor->ebx == 0x68747541 || vendor->ebx == 0x6f677948);
}

void remove_leaf(CpuidTable& table, std::uint32_t leaf) {
  std::erase_if(table, [leaf](const kvm_cpuid_entry2& entry) { return entry.function == leaf; });
}

kvm_cpuid_entry2& add_leaf(CpuidTable& table, std::uint32_t leaf, std::uint32_t subleaf,
                           std::uint32_t flags) {
  kvm_cpuid_entry2 entry = {};
  entry.function = leaf;
  entry.index = subleaf;
  entry.flags = flags;
  return table.emplace_back(entry);
}

void clear_feature(CpuidTable& table, std::string_view name) {
  const CpuFeature* const feature = find_cpu_feature(name);
  if (kvm_cpuid_entry2* const entry = find_leaf(table, feature->leaf, feature->subleaf)) {
    register_of(*entry, feature->reg) &= ~(1U << feature->bit);
  }
  for (const std::string_view dependent : dependents_of(name)) {
    clear_feature(table, dependent);
  }
}

bool has_feature(CpuidTable& table, const CpuFeature& feature) {
  kvm_cpuid_entry2* const entry = find_leaf(table, feature.leaf, feature.subleaf);
  return entry != nullptr && (register_of(*entry, feature.reg) >> feature.bit & 1U) != 0;
}

Result<> apply_masks(CpuidTable& table, const std::vector<std::string>& masks) {
  for (const std::string& mask : masks) {
    const bool remove = mask.starts_with('-');
    if (!remove && !mask.starts_with('+')) {
      return fail(ErrorCode::kConfig,
                  fmt::format("machine.cpu_features: \"{}\" begins with neither - nor +", mask));
    }
    const std::string_view name = std::string_view(mask).substr(1);
    const CpuFeature* const feature = find_cpu_feature(name);
    if (feature == nullptr) {
      return fail(ErrorCode::kConfig,
                  fmt::format("machine.cpu_features: \"{}\" is not the name of a processor feature "
                              "(see flags in /proc/cpuinfo)",
                              name));
    }
    if (remove) {
      clear_feature(table, name);
    } else if (!has_feature(table, *feature)) {
      return fail(ErrorCode::kConfig,
                  fmt::format("machine.cpu_features: this host's KVM does not offer \"{}\"", name));
    }
  }
  return {};
}

/// Nested virtualization stays hidden, unless it is insisted on.
void hide_nested_virtualization(CpuidTable& table, const std::vector<std::string>& masks) {
  if (std::ranges::find(masks, "+vmx") != masks.end() ||
      std::ranges::find(masks, "+svm") != masks.end()) {
    return;
  }
  if (kvm_cpuid_entry2* const entry = find_leaf(table, kLeafFeatures)) {
    entry->ecx &= ~kEcxVmx;
  }
  if (kvm_cpuid_entry2* const entry = find_leaf(table, kLeafExtendedFeatures)) {
    entry->ecx &= ~kExtendedEcxSvm;
  }
  remove_leaf(table, kLeafSvm);
}

void set_basic_features(CpuidTable& table, const CpuConfig& config,
                        const CpuidEnvironment& environment) {
  if (kvm_cpuid_entry2* const entry = find_leaf(table, kLeafFeatures)) {
    entry->ecx |= kEcxX2Apic | kEcxHypervisor;
    if (environment.tsc_deadline) {
      entry->ecx |= kEcxTscDeadline;
    }
    const std::uint32_t logical = 1U << package_bits(config.topology);
    entry->ebx = (entry->ebx & 0xff00ffff) | std::min(logical, 255U) << 16;
    entry->edx = config.count > 1 ? entry->edx | kEdxHtt : entry->edx & ~kEdxHtt;
  }
}

/// Leaf 0xb (and 0x1f, where there is one): threads in a core, cores in a package.
void set_extended_topology(CpuidTable& table, const CpuTopology& topology) {
  const bool v2 = find_leaf(table, kLeafTopologyV2) != nullptr;
  remove_leaf(table, kLeafTopology);
  remove_leaf(table, kLeafTopologyV2);
  for (const std::uint32_t leaf : {kLeafTopology, kLeafTopologyV2}) {
    if (leaf == kLeafTopologyV2 && !v2) {
      continue;
    }
    kvm_cpuid_entry2& smt = add_leaf(table, leaf, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    smt.eax = thread_bits(topology);
    smt.ebx = topology.threads;
    smt.ecx = 0 | kLevelSmt << 8;
    kvm_cpuid_entry2& core = add_leaf(table, leaf, 1, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    core.eax = package_bits(topology);
    core.ebx = topology.threads * topology.cores;
    core.ecx = 1 | kLevelCore << 8;
    kvm_cpuid_entry2& end = add_leaf(table, leaf, 2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    end.ecx = 2;
  }
  kvm_cpuid_entry2* const basic = find_leaf(table, 0);
  if (basic != nullptr) {
    basic->eax = std::max(basic->eax, kLeafTopology);
  }
}

/// Which vCPUs share a cache: levels 1 and 2 the threads of a core, higher ones the package.
void set_cache_sharing(CpuidTable& table, const CpuTopology& topology) {
  for (kvm_cpuid_entry2& entry : table) {
    if (entry.function != kLeafCaches && entry.function != kLeafAmdCaches) {
      continue;
    }
    if ((entry.eax & 0x1f) == 0) {
      continue;  // no further cache
    }
    const std::uint32_t level = entry.eax >> 5 & 0x7;
    const unsigned bits = level < 3 ? thread_bits(topology) : package_bits(topology);
    entry.eax = (entry.eax & ~(0xfffU << 14)) | ((1U << bits) - 1) << 14;
    if (entry.function == kLeafCaches) {
      const std::uint32_t cores = (1U << bits_for(topology.cores)) - 1;
      entry.eax = (entry.eax & ~(0x3fU << 26)) | std::min(cores, 0x3fU) << 26;
    }
  }
}

void set_amd_topology(CpuidTable& table, const CpuConfig& config) {
  if (kvm_cpuid_entry2* const entry = find_leaf(table, kLeafSizes)) {
    const CpuTopology& topology = config.topology;
    entry->ecx = (entry->ecx & 0xffff0000) | package_bits(topology) << 12 |
                 (topology.cores * topology.threads - 1);
  }
  if (kvm_cpuid_entry2* const entry = find_leaf(table, kLeafExtendedFeatures)) {
    entry->ecx = config.count > 1 && config.topology.threads == 1
                     ? entry->ecx | kExtendedEcxCmpLegacy
                     : entry->ecx & ~kExtendedEcxCmpLegacy;
  }
}

/// So that the guest calibrates neither its TSC nor its APIC timer.
void set_frequencies(CpuidTable& table, const CpuidEnvironment& environment, bool amd) {
  if (environment.tsc_khz == 0) {
    return;
  }
  if (kvm_cpuid_entry2* const entry = find_leaf(table, kLeafKvm)) {
    entry->eax = std::max(entry->eax, kLeafTiming);
    remove_leaf(table, kLeafTiming);
    kvm_cpuid_entry2& timing = add_leaf(table, kLeafTiming, 0, 0);
    timing.eax = environment.tsc_khz;
    timing.ebx = kApicBusKhz;
  }
  if (amd) {
    return;  // leaf 0x15 is Intel's
  }
  remove_leaf(table, kLeafTsc);
  kvm_cpuid_entry2& tsc = add_leaf(table, kLeafTsc, 0, 0);
  // TSC = crystal × EBX / EAX, the crystal in Hz: 1 MHz makes EBX the frequency in units of it.
  tsc.eax = 1000;
  tsc.ebx = environment.tsc_khz;
  tsc.ecx = 1'000'000;
  kvm_cpuid_entry2* const basic = find_leaf(table, 0);
  if (basic != nullptr) {
    basic->eax = std::max(basic->eax, kLeafTsc);
  }
}

}  // namespace

const kvm_cpuid_entry2* find_leaf(const CpuidTable& table, std::uint32_t leaf,
                                  std::uint32_t subleaf) {
  const auto found = std::ranges::find_if(table, [&](const kvm_cpuid_entry2& entry) {
    return entry.function == leaf && entry.index == subleaf;
  });
  return found == table.end() ? nullptr : &*found;
}

kvm_cpuid_entry2* find_leaf(CpuidTable& table, std::uint32_t leaf, std::uint32_t subleaf) {
  // NOLINTNEXTLINE(*-pro-type-const-cast): the table is not const
  return const_cast<kvm_cpuid_entry2*>(find_leaf(std::as_const(table), leaf, subleaf));
}

std::uint32_t cpu_id(const CpuTopology& topology, unsigned index) {
  const unsigned thread = index % topology.threads;
  const unsigned core = index / topology.threads % topology.cores;
  const unsigned socket = index / (topology.threads * topology.cores);
  return socket << package_bits(topology) | core << thread_bits(topology) | thread;
}

Result<> make_guest_cpuid(CpuidTable& table, const CpuConfig& config,
                          const CpuidEnvironment& environment) {
  const bool amd = is_amd(table);
  TRY(apply_masks(table, config.features));
  hide_nested_virtualization(table, config.features);
  set_basic_features(table, config, environment);
  if (std::ranges::find(config.features, "-x2apic") != config.features.end()) {
    clear_feature(table, "x2apic");
  }
  set_extended_topology(table, config.topology);
  set_cache_sharing(table, config.topology);
  if (amd) {
    set_amd_topology(table, config);
  }
  set_frequencies(table, environment, amd);
  return {};
}

bool shows_nested_virtualization(const CpuidTable& table) {
  const kvm_cpuid_entry2* const basic = find_leaf(table, kLeafFeatures);
  const kvm_cpuid_entry2* const extended = find_leaf(table, kLeafExtendedFeatures);
  return (basic != nullptr && (basic->ecx & kEcxVmx) != 0) ||
         (extended != nullptr && (extended->ecx & kExtendedEcxSvm) != 0);
}

void mask_features(CpuidTable& table, const std::vector<std::string>& features) {
  for (const std::string& feature : features) {
    if (feature.starts_with('-')) {
      clear_feature(table, std::string_view(feature).substr(1));
    }
  }
}

void set_cpu_id(CpuidTable& table, const CpuTopology& topology, std::uint32_t id) {
  for (kvm_cpuid_entry2& entry : table) {
    switch (entry.function) {
      case kLeafFeatures:
        entry.ebx = (entry.ebx & 0x00ffffff) | id << 24;
        break;
      case kLeafTopology:
      case kLeafTopologyV2:
        entry.edx = id;
        break;
      case kLeafAmdTopology:
        entry.eax = id;
        entry.ebx = (entry.ebx & 0xffff0000) | (topology.threads - 1) << 8 |
                    (id >> thread_bits(topology) & 0xff);
        entry.ecx = id >> package_bits(topology);  // one node for each package
        break;
      default:
        break;
    }
  }
}

}  // namespace vireo::arch
