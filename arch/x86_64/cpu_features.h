// SPDX-License-Identifier: Apache-2.0
// The processor features that have a name in /proc/cpuinfo, and where CPUID shows them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace vireo::arch {

enum class CpuidRegister : std::uint8_t { kEax, kEbx, kEcx, kEdx };

struct CpuFeature {
  std::string_view name;
  std::uint32_t leaf;
  std::uint32_t subleaf;
  CpuidRegister reg;
  std::uint8_t bit;
};

/// The feature of that name, or nullptr.
const CpuFeature* find_cpu_feature(std::string_view name);

/// All of them, for tests and suggestions.
std::span<const CpuFeature> cpu_features();

/// The names of features that make no sense without `name`, directly; they are masked along.
std::span<const std::string_view> dependents_of(std::string_view name);

}  // namespace vireo::arch
