// SPDX-License-Identifier: Apache-2.0
// Whether a guest that knows one processor can go on upon another.
#include <algorithm>
#include <array>
#include <utility>

#include <fmt/core.h>

#include "arch/x86_64/cpuid.h"

namespace vireo::arch {

namespace {

// Bits that tell what the guest has enabled, not what the processor has.
constexpr std::uint32_t kOsxsave = 1U << 27;  // leaf 1, ecx
constexpr std::uint32_t kOspke = 1U << 4;     // leaf 7, ecx

std::uint32_t value_of(const CpuidTable& table, const CpuFeature& place) {
  const kvm_cpuid_entry2* const entry = find_leaf(table, place.leaf, place.subleaf);
  if (entry == nullptr) {
    return 0;
  }
  switch (place.reg) {
    case CpuidRegister::kEax:
      return entry->eax;
    case CpuidRegister::kEbx:
      return entry->ebx;
    case CpuidRegister::kEcx:
      return entry->ecx & ~(place.leaf == 1 ? kOsxsave : place.leaf == 7 ? kOspke : 0U);
    case CpuidRegister::kEdx:
      return entry->edx;
  }
  std::unreachable();
}

bool same_register(const CpuFeature& one, const CpuFeature& other) {
  return one.leaf == other.leaf && one.subleaf == other.subleaf && one.reg == other.reg;
}

std::string name_of_bit(const CpuFeature& place, unsigned bit) {
  constexpr std::array<std::string_view, 4> kRegisters = {"eax", "ebx", "ecx", "edx"};
  const auto named = std::ranges::find_if(cpu_features(), [&](const CpuFeature& feature) {
    return same_register(feature, place) && feature.bit == bit;
  });
  return named != cpu_features().end()
             ? std::string(named->name)
             : fmt::format("leaf {:#x}.{} {} bit {}", place.leaf, place.subleaf,
                           kRegisters.at(std::to_underlying(place.reg)), bit);
}

std::array<std::uint32_t, 3> vendor_of(const CpuidTable& table) {
  const kvm_cpuid_entry2* const basic = find_leaf(table, 0);
  return basic != nullptr ? std::array{basic->ebx, basic->ecx, basic->edx}
                          : std::array<std::uint32_t, 3>{};
}

}  // namespace

std::vector<std::string> missing_features(const CpuidTable& wanted, const CpuidTable& offered) {
  std::vector<std::string> missing;
  if (vendor_of(wanted) != vendor_of(offered)) {
    missing.emplace_back("the processor of another vendor");
  }
  // The registers that hold features are those that one with a name is in; its first one counts.
  const std::span<const CpuFeature> all = cpu_features();
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (std::ranges::any_of(
            all.first(i), [&](const CpuFeature& other) { return same_register(other, all[i]); })) {
      continue;
    }
    const std::uint32_t lacking = value_of(wanted, all[i]) & ~value_of(offered, all[i]);
    for (unsigned bit = 0; bit < 32; ++bit) {
      if ((lacking >> bit & 1U) != 0) {
        missing.push_back(name_of_bit(all[i], bit));
      }
    }
  }
  return missing;
}

}  // namespace vireo::arch
