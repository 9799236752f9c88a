// SPDX-License-Identifier: Apache-2.0
#include "arch/arch.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>
#include <string>

#include <unistd.h>

#include "arch/x86_64/acpi.h"
#include "arch/x86_64/cpuid.h"
#include "arch/x86_64/layout.h"
#include "tests/support/catch.h"

namespace vireo::arch {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

kvm_cpuid_entry2 entry(std::uint32_t leaf, std::uint32_t subleaf = 0) {
  kvm_cpuid_entry2 result = {};
  result.function = leaf;
  result.index = subleaf;
  return result;
}

CpuidTable host_table(bool amd) {
  CpuidTable table;
  kvm_cpuid_entry2 vendor = entry(0);
  vendor.eax = 0xd;
  vendor.ebx = amd ? 0x68747541 : 0x756e6547;
  table.push_back(vendor);
  kvm_cpuid_entry2 features = entry(1);
  features.ecx = 0xffffffff & ~(1U << 24);  // everything, VMX too, but no TSC deadline
  features.edx = 0xffffffff;
  table.push_back(features);
  kvm_cpuid_entry2 cache = entry(4, 0);
  cache.eax = 1 | 1 << 5 | 0xfffU << 14;  // a level 1 cache that many share
  table.push_back(cache);
  cache = entry(4, 1);
  cache.eax = 3 | 3 << 5;
  table.push_back(cache);
  kvm_cpuid_entry2 extended = entry(7, 0);
  extended.ebx = 0xffffffff;
  table.push_back(extended);
  kvm_cpuid_entry2 xsave = entry(0xd, 1);
  xsave.eax = 0xf;
  table.push_back(xsave);
  kvm_cpuid_entry2 kvm = entry(0x40000000);
  kvm.eax = 0x40000001;
  table.push_back(kvm);
  kvm_cpuid_entry2 amd_features = entry(0x80000001);
  amd_features.ecx = 0xffffffff;
  table.push_back(amd_features);
  table.push_back(entry(0x80000008));
  table.push_back(entry(0x8000000a));
  table.push_back(entry(0x8000001e));
  return table;
}

TEST_CASE("ram: around the hole under 4 GiB") {
  const auto small = ram_ranges(3072 * kMiB);
  REQUIRE(small.size() == 1);
  CHECK(small[0].end() == layout::kMmioHoleStart);
  const auto large = ram_ranges(6144 * kMiB);
  REQUIRE(large.size() == 2);
  CHECK(large[1].start() == layout::kHole64End);
  CHECK(large[0].size() + large[1].size() == 6144 * kMiB);
}

TEST_CASE("cpuid: basic policy") {
  for (const bool amd : {true, false}) {
    CpuidTable table = host_table(amd);
    REQUIRE(make_guest_cpuid(table, {.count = 4, .topology = {.cores = 4}},
                             {.tsc_khz = 2'600'000, .tsc_deadline = true}));
    const kvm_cpuid_entry2* const features = find_leaf(table, 1);
    CHECK((features->ecx & 1U << 5) == 0);   // VMX
    CHECK((features->ecx & 1U << 21) != 0);  // x2APIC
    CHECK((features->ecx & 1U << 24) != 0);  // TSC deadline
    CHECK((features->ecx & 1U << 31) != 0);  // hypervisor
    CHECK((features->ebx >> 16 & 0xff) == 4);
    CHECK((find_leaf(table, 0x80000001)->ecx & 1U << 2) == 0);  // SVM
    CHECK(find_leaf(table, 0x8000000a) == nullptr);
    CHECK(find_leaf(table, 0x40000010)->eax == 2'600'000);
    CHECK(find_leaf(table, 0x40000010)->ebx == 1'000'000);
    CHECK(find_leaf(table, 0x40000000)->eax >= 0x40000010);
    if (!amd) {
      const kvm_cpuid_entry2* const tsc = find_leaf(table, 0x15);
      CHECK(std::uint64_t{tsc->ecx} * tsc->ebx / tsc->eax == 2'600'000'000);
    }
  }
}

TEST_CASE("cpuid: topology of 1 to 64 vCPUs, each with an id of its own") {
  for (unsigned sockets = 1; sockets <= 4; ++sockets) {
    for (unsigned cores = 1; cores <= 16; ++cores) {
      for (unsigned threads = 1; threads <= 2 && sockets * cores * threads <= 64; ++threads) {
        const CpuTopology topology = {.sockets = sockets, .cores = cores, .threads = threads};
        const unsigned count = sockets * cores * threads;
        CpuidTable table = host_table(true);
        REQUIRE(make_guest_cpuid(table, {.count = count, .topology = topology}, {}));
        const unsigned smt_bits = find_leaf(table, 0xb, 0)->eax;
        const unsigned package_bits = find_leaf(table, 0xb, 1)->eax;
        CHECK(find_leaf(table, 0xb, 0)->ebx == threads);
        CHECK(find_leaf(table, 0xb, 1)->ebx == threads * cores);
        std::set<std::uint32_t> ids;
        std::set<std::uint32_t> packages;
        std::set<std::uint32_t> core_ids;
        for (unsigned index = 0; index < count; ++index) {
          const std::uint32_t id = cpu_id(topology, index);
          ids.insert(id);
          packages.insert(id >> package_bits);
          core_ids.insert(id >> smt_bits);
          set_cpu_id(table, topology, id);
          CHECK(find_leaf(table, 1)->ebx >> 24 == id);
          CHECK(find_leaf(table, 0xb, 1)->edx == id);
        }
        CHECK(ids.size() == count);
        CHECK(packages.size() == sockets);
        CHECK(core_ids.size() == std::size_t{sockets} * cores);
      }
    }
  }
}

TEST_CASE("cpuid: masks take features and what builds on them, and insist on others") {
  CpuidTable table = host_table(false);
  REQUIRE(make_guest_cpuid(table, {.features = {"-avx", "+aes"}}, {}));
  CHECK((find_leaf(table, 1)->ecx & 1U << 28) == 0);  // avx
  CHECK((find_leaf(table, 1)->ecx & 1U << 12) == 0);  // fma
  CHECK((find_leaf(table, 7)->ebx & 1U << 5) == 0);   // avx2
  CHECK((find_leaf(table, 7)->ebx & 1U << 16) == 0);  // avx512f
  CHECK((find_leaf(table, 1)->ecx & 1U << 25) != 0);  // aes
  CpuidTable nested = host_table(false);
  REQUIRE(make_guest_cpuid(nested, {.features = {"+vmx"}}, {}));
  CHECK((find_leaf(nested, 1)->ecx & 1U << 5) != 0);
  for (const char* const wrong : {"-warp", "+amx_tile", "avx"}) {
    CpuidTable copy = host_table(false);
    const Result<> refused = make_guest_cpuid(copy, {.features = {wrong}}, {});
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code() == ErrorCode::kConfig);
  }
}

TEST_CASE("cpu features: each name once, each bit once, and this host's names are known") {
  std::set<std::string_view> names;
  std::set<std::tuple<std::uint32_t, std::uint32_t, CpuidRegister, int>> bits;
  for (const CpuFeature& feature : cpu_features()) {
    CHECK(names.insert(feature.name).second);
    CHECK(bits.emplace(feature.leaf, feature.subleaf, feature.reg, feature.bit).second);
    for (const std::string_view dependent : dependents_of(feature.name)) {
      CHECK(find_cpu_feature(dependent) != nullptr);
    }
  }
  // Names that Linux makes up itself have no CPUID bit behind them; of the rest most are known.
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line) && !line.starts_with("flags")) {
  }
  std::istringstream flags(line.substr(line.find(':') + 1));
  std::string flag;
  int known = 0;
  int all = 0;
  while (flags >> flag) {
    ++all;
    known += find_cpu_feature(flag) != nullptr ? 1 : 0;
  }
  CHECK(known * 10 >= all * 8);
}

struct Tables {
  explicit Tables(std::span<const MmioDevice> devices, unsigned cpus = 2, bool pci = false) {
    const std::array ranges = {*GuestRange::create(GuestAddress(0), 2 * kMiB)};
    memory = std::move(*GuestMemory::create(ranges, {}));
    std::vector<std::uint32_t> ids(cpus);
    std::ranges::generate(ids, [id = 0U]() mutable { return id++; });
    result = write_platform_tables(
        *memory,
        {.cpu_ids = ids, .mmio_devices = devices, .pci = pci, .uuid = {0x8c, 0x1f, 0x1c, 0x1e}});
  }
  std::vector<std::uint8_t> bytes(std::uint64_t address, std::uint64_t size) const {
    std::vector<std::uint8_t> copy(size);
    REQUIRE(memory->read(GuestAddress(address), std::as_writable_bytes(std::span(copy))));
    return copy;
  }
  std::uint32_t word(std::uint64_t address) const {
    return *memory->read_object<std::uint32_t>(GuestAddress(address));
  }

  std::unique_ptr<GuestMemory> memory;
  Result<GuestAddress> result = GuestAddress(0);
};

unsigned sum(const std::vector<std::uint8_t>& bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), 0U) & 0xff;
}

const std::array kDevices = {
    MmioDevice{.address = layout::kVirtioMmio, .size = layout::kVirtioMmioSize, .gsi = 5},
    MmioDevice{.address = GuestAddress(layout::kVirtioMmio.value() + 0x1000),
               .size = layout::kVirtioMmioSize,
               .gsi = 6},
};

TEST_CASE("acpi: every table is reachable and sums to zero") {
  const bool pci = GENERATE(false, true);
  const Tables tables(kDevices, 2, pci);
  REQUIRE(tables.result.has_value());
  CHECK(*tables.result == layout::kRsdp);
  CHECK(sum(tables.bytes(layout::kRsdp.value(), 20)) == 0);
  CHECK(sum(tables.bytes(layout::kRsdp.value(), 36)) == 0);
  const std::uint64_t xsdt = tables.word(layout::kRsdp.value() + 24);
  std::set<std::string> signatures;
  for (std::uint64_t at = xsdt + 36; at < xsdt + tables.word(xsdt + 4); at += 8) {
    const std::uint64_t table = tables.word(at);
    const auto whole = tables.bytes(table, tables.word(table + 4));
    CHECK(sum(whole) == 0);
    if (whole[0] == 'M') {
      CHECK(whole.size() == 36 + 8 + 16);
      CHECK(tables.word(table + 44) == layout::kPciEcam.value());
      CHECK(tables.word(table + 48) == 0);
      CHECK(tables.word(table + 52) == 0);  // segment 0, buses 0 to 0
    }
    signatures.emplace(whole.begin(), whole.begin() + 4);
    if (signatures.contains("FACP")) {
      const std::uint64_t dsdt = tables.word(table + 140);
      if (whole[0] == 'F') {
        CHECK(sum(tables.bytes(dsdt, tables.word(dsdt + 4))) == 0);
        CHECK((tables.word(table + 112) & 1U << 20) != 0);  // hardware-reduced
      }
    }
  }
  std::set<std::string> expected = {"FACP", "APIC"};
  if (pci) {
    expected.insert("MCFG");
  }
  CHECK(signatures == expected);
}

TEST_CASE("acpi: iasl reads the DSDT without a complaint and writes the same again") {
  const bool pci = GENERATE(false, true);
  const auto directory =
      std::filesystem::temp_directory_path() / ("vireo-acpi." + std::to_string(::getpid()));
  std::filesystem::create_directory(directory);
  const std::vector<std::uint8_t> dsdt = make_dsdt(kDevices, pci);
  std::ofstream(directory / "dsdt.aml", std::ios::binary)
      .write(std::string(dsdt.begin(), dsdt.end()).data(),
             static_cast<std::streamsize>(dsdt.size()));
  const std::string command =
      "cd " + directory.string() +
      " && iasl -d dsdt.aml > log 2>&1 && iasl -we -ve dsdt.dsl >> log 2>&1";
  const int status = std::system(command.c_str());
  std::ifstream log_file(directory / "log");
  std::stringstream log;
  log << log_file.rdbuf();
  INFO(log.str());
  CHECK(status == 0);
  CHECK(log.str().find("0 Errors, 0 Warnings, 0 Remarks") != std::string::npos);
  std::ifstream source_file(directory / "dsdt.dsl");
  std::stringstream source;
  source << source_file.rdbuf();
  for (const char* const part :
       {"ACPI0013", "PNP0501", "QEMU0001", "PNP0C0C", "_EVT", "0xC0001000"}) {
    CHECK(source.str().find(part) != std::string::npos);
  }
  for (const char* const part :
       {"PNP0A08", "PNP0C02", "_CBA", "WordBusNumber", "DWordMemory", "0xD0000000", "0xDFFFFFFF"}) {
    CHECK((source.str().find(part) != std::string::npos) == pci);
  }
  std::size_t devices = 0;
  for (std::size_t at = 0; (at = source.str().find("LNRO0005", at)) != std::string::npos; ++at) {
    ++devices;
  }
  CHECK(devices == kDevices.size());
  std::filesystem::remove_all(directory);
}

TEST_CASE("acpi: more devices than the tables hold are refused") {
  const std::vector<MmioDevice> many(4000, kDevices[0]);
  const Tables tables(many);
  REQUIRE_FALSE(tables.result.has_value());
}

TEST_CASE("smbios: the entry point sums to zero and leads to the UUID") {
  const Tables tables({});
  const auto entry_point = tables.bytes(layout::kSmbios.value(), 24);
  CHECK(std::string(entry_point.begin(), entry_point.begin() + 5) == "_SM3_");
  CHECK(sum(entry_point) == 0);
  const auto table = tables.bytes(tables.word(layout::kSmbios.value() + 16),
                                  tables.word(layout::kSmbios.value() + 12));
  const std::array<std::uint8_t, 4> swapped = {0x1e, 0x1c, 0x1f, 0x8c};
  CHECK_FALSE(std::ranges::search(table, swapped).empty());
}

TEST_CASE("boot vCPU: real KVM takes the state of both protocols") {
  auto vm = KvmVm::create("/dev/kvm", required_capabilities());
  if (!vm) {
    FAIL(vm.error().message());
  }
  const std::array ranges = {*GuestRange::create(GuestAddress(0), 2 * kMiB)};
  const auto memory = std::move(*GuestMemory::create(ranges, {}));
  REQUIRE((*vm)->add_memory(*memory).has_value());
  REQUIRE(create_interrupt_controllers(**vm).has_value());
  const auto model = make_cpu_model(**vm, {.count = 2, .topology = {.cores = 2}});
  REQUIRE(model.has_value());
  const UniqueFd vcpu(::ioctl((*vm)->fd(), KVM_CREATE_VCPU, 0UL));
  REQUIRE(vcpu.get() >= 0);
  REQUIRE(setup_vcpu(vcpu.get(), **model, 0).has_value());
  for (const BootProtocol protocol : {BootProtocol::kLinux64, BootProtocol::kPvh}) {
    REQUIRE(setup_boot_vcpu(vcpu.get(), *memory,
                            {.protocol = protocol,
                             .address = GuestAddress(0x100000),
                             .parameters = layout::kZeroPage})
                .has_value());
    kvm_regs regs = {};
    kvm_sregs sregs = {};
    REQUIRE(::ioctl(vcpu.get(), KVM_GET_REGS, &regs) == 0);
    REQUIRE(::ioctl(vcpu.get(), KVM_GET_SREGS, &sregs) == 0);
    CHECK(regs.rip == 0x100000);
    const bool long_mode = protocol == BootProtocol::kLinux64;
    CHECK((long_mode ? regs.rsi : regs.rbx) == layout::kZeroPage.value());
    CHECK(((sregs.efer & 1U << 10) != 0) == long_mode);
    CHECK((sregs.cs.l != 0) == long_mode);
  }
}

}  // namespace
}  // namespace vireo::arch
