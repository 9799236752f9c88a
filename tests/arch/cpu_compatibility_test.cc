// SPDX-License-Identifier: Apache-2.0
// Which features a guest would miss on another processor, and those that it is told to.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "arch/x86_64/cpuid.h"
#include "tests/support/catch.h"

namespace vireo::arch {
namespace {

using Names = std::vector<std::string>;

constexpr std::array<std::uint32_t, 3> kIntel = {0x756e6547, 0x6c65746e, 0x49656e69};
constexpr std::array<std::uint32_t, 3> kAmd = {0x68747541, 0x444d4163, 0x69746e65};
/// "AuthenticAMD" and "Authentic ???" begin alike.
constexpr std::array<std::uint32_t, 3> kAlmostAmd = {0x68747541, 0x444d4163, 0x3f3f3f3f};

CpuidTable processor(const std::array<std::uint32_t, 3>& vendor = kIntel) {
  CpuidTable table = {{.function = 0, .ebx = vendor[0], .ecx = vendor[1], .edx = vendor[2]}};
  for (const auto& [leaf, subleaf] : {std::pair<std::uint32_t, std::uint32_t>{0x1, 0},
                                      {0x7, 0},
                                      {0x7, 1},
                                      {0xd, 1},
                                      {0x80000001, 0}}) {
    table.push_back({.function = leaf, .index = subleaf});
  }
  return table;
}

std::uint32_t& register_of(CpuidTable& table, const CpuFeature& feature) {
  kvm_cpuid_entry2& entry = *find_leaf(table, feature.leaf, feature.subleaf);
  switch (feature.reg) {
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

CpuidTable with(std::initializer_list<std::string_view> names) {
  CpuidTable table = processor();
  for (const std::string_view name : names) {
    const CpuFeature& feature = *find_cpu_feature(name);
    register_of(table, feature) |= 1U << feature.bit;
  }
  return table;
}

TEST_CASE("cpu compatibility: what the guest knows and is not offered is named") {
  const CpuidTable guest = with({"sse2", "avx", "avx2", "pdpe1gb", "xsaveopt"});
  CHECK(missing_features(guest, guest).empty());
  CHECK(
      missing_features(guest, with({"sse2", "avx", "avx2", "pdpe1gb", "xsaveopt", "aes"})).empty());
  CHECK(missing_features(with({}), guest).empty());
  CHECK(missing_features(guest, with({"sse2", "avx", "pdpe1gb", "xsaveopt"})) == Names{"avx2"});
  Names all = missing_features(guest, processor());
  std::ranges::sort(all);
  CHECK(all == Names{"avx", "avx2", "pdpe1gb", "sse2", "xsaveopt"});
}

TEST_CASE("cpu compatibility: each feature with a name is missed by it, and by nothing else") {
  for (const CpuFeature& feature : cpu_features()) {
    CpuidTable offered = processor();
    if (find_leaf(offered, feature.leaf, feature.subleaf) == nullptr) {
      offered.push_back({.function = feature.leaf, .index = feature.subleaf});
    }
    CpuidTable guest = offered;
    register_of(guest, feature) = 1U << feature.bit;
    const Names missing = missing_features(guest, offered);
    const bool of_the_guest = feature.name == "osxsave" || feature.name == "ospke";
    INFO(feature.name);
    CHECK(missing == (of_the_guest ? Names{} : Names{std::string(feature.name)}));
  }
}

TEST_CASE("cpu compatibility: a bit without a name is missed by its place") {
  CpuidTable guest = processor();
  find_leaf(guest, 0x7)->edx = 1U << 7;
  find_leaf(guest, 0x7, 1)->eax = 1U << 31;
  find_leaf(guest, 0x1)->ecx = 1U << 16;
  Names missing = missing_features(guest, processor());
  std::ranges::sort(missing);
  CHECK(missing == Names{"leaf 0x1.0 ecx bit 16", "leaf 0x7.0 edx bit 7", "leaf 0x7.1 eax bit 31"});

  // Registers that hold numbers of another kind are not compared.
  CpuidTable numbers = processor();
  find_leaf(numbers, 0x1)->eax = 0xa20f12;
  find_leaf(numbers, 0x1)->ebx = 0x03020800;
  numbers.push_back({.function = 0x16, .eax = 3000});
  CHECK(missing_features(numbers, processor()).empty());
}

TEST_CASE("cpu compatibility: a leaf that is not there offers nothing") {
  const CpuidTable guest = with({"avx2", "sse2"});
  CpuidTable offered = with({"sse2"});
  std::erase_if(offered, [](const kvm_cpuid_entry2& entry) { return entry.function == 0x7; });
  CHECK(missing_features(guest, offered) == Names{"avx2"});
  CHECK(missing_features(offered, guest).empty());
}

TEST_CASE("cpu compatibility: another vendor's processor is another one") {
  const Names other = {"the processor of another vendor"};
  CHECK(missing_features(processor(kIntel), processor(kAmd)) == other);
  CHECK(missing_features(processor(kAmd), processor(kAlmostAmd)) == other);
  CHECK(missing_features(processor(kAmd), processor(kAmd)).empty());
  CHECK(missing_features(processor(), {}) == other);
}

TEST_CASE("cpu compatibility: what the guest has enabled is no feature of the processor") {
  CpuidTable guest = with({"xsave", "pku"});
  const CpuidTable before = guest;
  find_leaf(guest, 0x1)->ecx |= 1U << 27;  // OSXSAVE
  find_leaf(guest, 0x7)->ecx |= 1U << 4;   // OSPKE
  CHECK(missing_features(guest, before).empty());
  CHECK(missing_features(before, guest).empty());
  // These bits mean something else elsewhere.
  CpuidTable extended = processor();
  find_leaf(extended, 0x80000001)->ecx = 1U << 27 | 1U << 4;
  find_leaf(extended, 0x1)->edx = 1U << 27;
  find_leaf(extended, 0x7)->ecx = 1U << 27;
  CHECK(missing_features(extended, processor()).size() == 4);
}

TEST_CASE("cpu compatibility: masked features are gone, with what builds on them") {
  CpuidTable guest = with({"sse2", "avx", "avx2", "fma", "avx512f", "aes"});
  mask_features(guest, {"-avx", "+aes"});
  CHECK(missing_features(guest, with({"sse2", "aes"})).empty());
  CHECK(missing_features(with({"sse2", "aes"}), guest).empty());
  mask_features(guest, {});
  CHECK(missing_features(with({"sse2", "aes"}), guest).empty());
  // What is not there, or whose leaf is not, can be masked, too.
  mask_features(guest, {"-avx", "-aes", "-vmx"});
  CHECK(missing_features(guest, with({"sse2"})).empty());
  CpuidTable small = {{.function = 0x1}};
  mask_features(small, {"-avx2"});
  CHECK(small.size() == 1);
}

}  // namespace
}  // namespace vireo::arch
