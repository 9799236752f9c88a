// SPDX-License-Identifier: Apache-2.0
#include "arch/x86_64/acpi.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <string>

#include <fmt/core.h>

#include "arch/x86_64/aml.h"
#include "arch/x86_64/layout.h"
#include "arch/x86_64/smbios.h"
#include "src/base/endian.h"

namespace vireo::arch {

namespace {

using aml::Bytes;

struct TableHeader {
  std::array<char, 4> signature = {};
  le32 length;
  std::uint8_t revision = 0;
  std::uint8_t checksum = 0;
  std::array<char, 6> oem_id = {'V', 'I', 'R', 'E', 'O', ' '};
  std::array<char, 8> oem_table_id = {'V', 'I', 'R', 'E', 'O', 'V', 'M', ' '};
  le32 oem_revision = 1;
  std::array<char, 4> creator_id = {'V', 'I', 'R', 'E'};
  le32 creator_revision = 1;
};
static_assert(sizeof(TableHeader) == 36);

/// Generic address structure, §5.2.3.2.
struct GenericAddress {
  std::uint8_t space = 0;
  std::uint8_t bit_width = 0;
  std::uint8_t bit_offset = 0;
  std::uint8_t access_size = 0;
  le64 address;
};
static_assert(sizeof(GenericAddress) == 12);

GenericAddress byte_port(std::uint16_t port) {
  constexpr std::uint8_t kSystemIo = 1;
  constexpr std::uint8_t kByteAccess = 1;
  return {.space = kSystemIo, .bit_width = 8, .access_size = kByteAccess, .address = port};
}

/// Fixed ACPI description table, §5.2.9. What hardware-reduced systems ignore stays zero.
struct Fadt {
  TableHeader header;
  le32 firmware_ctrl;
  le32 dsdt;
  std::array<std::uint8_t, 65> ignored_1 = {};
  le16 iapc_boot_arch;
  std::uint8_t reserved_1 = 0;
  le32 flags;
  GenericAddress reset_register;
  std::uint8_t reset_value = 0;
  le16 arm_boot_arch;
  std::uint8_t minor_version = 5;
  le64 x_firmware_ctrl;
  le64 x_dsdt;
  std::array<GenericAddress, 8> ignored_2 = {};
  GenericAddress sleep_control;
  GenericAddress sleep_status;
  std::array<char, 8> hypervisor_vendor = {'V', 'I', 'R', 'E', 'O', 0, 0, 0};
};
static_assert(sizeof(Fadt) == 276 && offsetof(Fadt, iapc_boot_arch) == 109 &&
              offsetof(Fadt, flags) == 112 && offsetof(Fadt, reset_register) == 116 &&
              offsetof(Fadt, x_dsdt) == 140 && offsetof(Fadt, sleep_control) == 244);

// Flags of the FADT, table 5.10.
constexpr std::uint32_t kFlagWbinvd = 1U << 0;
constexpr std::uint32_t kFlagC1Supported = 1U << 2;
constexpr std::uint32_t kFlagPowerButtonIsDevice = 1U << 4;
constexpr std::uint32_t kFlagNoFixedSleepButton = 1U << 5;
constexpr std::uint32_t kFlagResetRegister = 1U << 10;
constexpr std::uint32_t kFlagHardwareReduced = 1U << 20;
// IA-PC boot architecture flags, table 5.11: a keyboard controller, no VGA, no ASPM to control.
constexpr std::uint16_t kBootLegacyDevices = 1U << 0;
constexpr std::uint16_t kBoot8042 = 1U << 1;
constexpr std::uint16_t kBootNoVga = 1U << 2;
constexpr std::uint16_t kBootNoAspm = 1U << 4;

/// Root system description pointer, §5.2.5.3.
struct Rsdp {
  std::array<char, 8> signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '};
  std::uint8_t checksum = 0;
  std::array<char, 6> oem_id = {'V', 'I', 'R', 'E', 'O', ' '};
  std::uint8_t revision = 2;
  le32 rsdt_address;
  le32 length = 36;
  le64 xsdt_address;
  std::uint8_t extended_checksum = 0;
  std::array<std::uint8_t, 3> reserved = {};
};
static_assert(sizeof(Rsdp) == 36);

struct MadtLocalApic {
  std::uint8_t type = 0;
  std::uint8_t length = 8;
  std::uint8_t processor_uid = 0;
  std::uint8_t apic_id = 0;
  le32 flags = 1;  // enabled
};
static_assert(sizeof(MadtLocalApic) == 8);

struct MadtIoApic {
  std::uint8_t type = 1;
  std::uint8_t length = 12;
  std::uint8_t id = 0;
  std::uint8_t reserved = 0;
  le32 address;
  le32 gsi_base;
};
static_assert(sizeof(MadtIoApic) == 12);

/// Memory mapped configuration space, PCI Firmware 3.2 §4.1.2: one bus has one allocation.
struct McfgAllocation {
  le64 reserved_1;  // of the table
  le64 address;
  le16 segment;
  std::uint8_t first_bus = 0;
  std::uint8_t last_bus = 0;
  le32 reserved_2;
};
static_assert(sizeof(McfgAllocation) == 8 + 16);

template <typename T>
void append_object(Bytes& bytes, const T& object) {
  const auto raw = std::bit_cast<std::array<std::uint8_t, sizeof(T)>>(object);
  bytes.insert(bytes.end(), raw.begin(), raw.end());
}

std::uint8_t checksum(std::span<const std::uint8_t> bytes) {
  return static_cast<std::uint8_t>(-std::accumulate(bytes.begin(), bytes.end(), 0U));
}

/// A table of `signature` around `body`, which follows the header.
Bytes make_table(const char* signature, std::uint8_t revision, const Bytes& body) {
  TableHeader header;
  std::memcpy(header.signature.data(), signature, header.signature.size());
  header.length = static_cast<std::uint32_t>(sizeof(header) + body.size());
  header.revision = revision;
  Bytes table;
  append_object(table, header);
  table.insert(table.end(), body.begin(), body.end());
  table[offsetof(TableHeader, checksum)] = checksum(table);
  return table;
}

Bytes make_fadt(GuestAddress dsdt) {
  Fadt fadt;
  fadt.dsdt = static_cast<std::uint32_t>(dsdt.value());
  fadt.x_dsdt = dsdt.value();
  fadt.iapc_boot_arch = kBootLegacyDevices | kBoot8042 | kBootNoVga | kBootNoAspm;
  fadt.flags = kFlagWbinvd | kFlagC1Supported | kFlagPowerButtonIsDevice | kFlagNoFixedSleepButton |
               kFlagResetRegister | kFlagHardwareReduced;
  fadt.reset_register = byte_port(layout::kResetPort);
  fadt.reset_value = layout::kResetValue;
  fadt.sleep_control = byte_port(layout::kSleepControlPort);
  fadt.sleep_status = byte_port(layout::kSleepStatusPort);
  Bytes whole;
  append_object(whole, fadt);
  return make_table("FACP", 6, Bytes(whole.begin() + sizeof(TableHeader), whole.end()));
}

Bytes make_madt(std::span<const std::uint32_t> cpu_ids) {
  Bytes body;
  append_object(body, le32(static_cast<std::uint32_t>(layout::kLocalApic.value())));
  append_object(body, le32(0));  // no 8259 pair: the guest uses APICs from the start
  std::uint8_t uid = 0;
  for (const std::uint32_t id : cpu_ids) {
    append_object(body,
                  MadtLocalApic{.processor_uid = uid++, .apic_id = static_cast<std::uint8_t>(id)});
  }
  append_object(body, MadtIoApic{.address = static_cast<std::uint32_t>(layout::kIoApic.value())});
  return make_table("APIC", 5, body);
}

Bytes make_mcfg() {
  Bytes body;
  append_object(body, McfgAllocation{.address = layout::kPciEcam.value()});
  return make_table("MCFG", 1, body);
}

Bytes serial_device() {
  return aml::device(
      "COM1", {aml::name("_HID", aml::eisa_id("PNP0501")), aml::name("_UID", aml::integer(0)),
               aml::name("_DDN", aml::string("COM1")),
               aml::name("_CRS", aml::resource_template({aml::io_ports(layout::kCom1Port, 8),
                                                         aml::edge_interrupt(layout::kCom1Gsi)}))});
}

Bytes keyboard_device() {
  return aml::device(
      "KBD",
      {aml::name("_HID", aml::eisa_id("PNP0303")),
       aml::name("_CRS", aml::resource_template({aml::io_ports(layout::kI8042DataPort, 1),
                                                 aml::io_ports(layout::kI8042CommandPort, 1),
                                                 aml::edge_interrupt(layout::kKeyboardGsi)}))});
}

Bytes clock_device() {
  return aml::device(
      "RTC",
      {aml::name("_HID", aml::eisa_id("PNP0B00")),
       aml::name("_CRS", aml::resource_template({aml::io_ports(layout::kCmosIndexPort, 2)}))});
}

Bytes pvpanic_device() {
  // The _STA value of a device that works but is not shown to users.
  constexpr std::uint8_t kPresentHidden = 0xb;
  return aml::device(
      "PEVT",
      {aml::name("_HID", aml::string("QEMU0001")), aml::name("_STA", aml::integer(kPresentHidden)),
       aml::name("_CRS", aml::resource_template({aml::io_ports(layout::kPvpanicPort, 1)}))});
}

Bytes power_button() {
  return aml::device("PWRB", {aml::name("_HID", aml::eisa_id("PNP0C0C"))});
}

/// Microsoft's "Virtual Machine Generation ID": a number that is another one in each clone of a VM.
Bytes generation_id() {
  return aml::device(
      "VGEN",
      {aml::name("_HID", aml::string("VIRE0001")), aml::name("_CID", aml::string("VM_Gen_Counter")),
       aml::name("_DDN", aml::string("VM_Gen_Counter")),
       aml::name("ADDR", aml::package({aml::integer(layout::kVmGenId.value()), aml::integer(0)}))});
}

/// §5.6.9: one interrupt, one register; _EVT takes the pending events and notifies their devices.
Bytes generic_event_device() {
  constexpr std::uint8_t kButtonPressed = 0x80;
  constexpr std::uint8_t kChanged = 0x80;
  return aml::device(
      "GED",
      {aml::name("_HID", aml::string("ACPI0013")),
       aml::name("_CRS", aml::resource_template({aml::edge_interrupt(layout::kGedGsi)})),
       aml::port_region("EVTR", layout::kGedPort, 4), aml::dword_field("EVTR", "EVTF"),
       aml::method(
           "_EVT", 1,
           {aml::store(aml::path("EVTF"), aml::local0()),
            aml::if_then(aml::bitwise_and(aml::local0(), aml::integer(layout::kGedPowerButton)),
                         aml::notify("\\_SB.PWRB", kButtonPressed)),
            aml::if_then(aml::bitwise_and(aml::local0(), aml::integer(layout::kGedVmGenId)),
                         aml::notify("\\_SB.VGEN", kChanged))})});
}

/// The host bridge with its bus, and who holds the configuration space: a guest takes it for
/// usable only if it is some device's resource (PCI Firmware 3.2 §4.1.2).
Bytes pci_devices() {
  const auto window = static_cast<std::uint32_t>(layout::kPciMmio32.value());
  const auto ecam = static_cast<std::uint32_t>(layout::kPciEcam.value());
  return aml::join(
      {aml::device(
           "PCI0",
           {aml::name("_HID", aml::eisa_id("PNP0A08")), aml::name("_CID", aml::eisa_id("PNP0A03")),
            aml::name("_UID", aml::integer(0)), aml::name("_SEG", aml::integer(0)),
            aml::name("_BBN", aml::integer(0)), aml::name("_CBA", aml::integer(ecam)),
            aml::name("_CRS",
                      aml::resource_template(
                          {aml::bus_numbers(0, 1), aml::memory32_window(window, ecam - window)}))}),
       aml::device("ECAM",
                   {aml::name("_HID", aml::eisa_id("PNP0C02")), aml::name("_UID", aml::integer(0)),
                    aml::name("_CRS", aml::resource_template(
                                          {aml::memory32_fixed(ecam, layout::kPciEcamSize)}))})});
}

Bytes virtio_mmio_device(const MmioDevice& device, unsigned number) {
  const std::string name = fmt::format("V{:03X}", number);
  return aml::device(
      name, {aml::name("_HID", aml::string("LNRO0005")), aml::name("_UID", aml::integer(number)),
             aml::name("_CCA", aml::integer(1)),
             aml::name("_CRS",
                       aml::resource_template(
                           {aml::memory32_fixed(static_cast<std::uint32_t>(device.address.value()),
                                                static_cast<std::uint32_t>(device.size)),
                            aml::edge_interrupt(device.gsi)}))});
}

}  // namespace

std::vector<std::uint8_t> make_dsdt(std::span<const MmioDevice> mmio_devices, bool pci) {
  Bytes devices = aml::join({serial_device(), keyboard_device(), clock_device(), pvpanic_device(),
                             power_button(), generation_id(), generic_event_device()});
  if (pci) {
    devices = aml::join({devices, pci_devices()});
  }
  unsigned number = 0;
  for (const MmioDevice& device : mmio_devices) {
    const Bytes bytes = virtio_mmio_device(device, number++);
    devices.insert(devices.end(), bytes.begin(), bytes.end());
  }
  const Bytes s5 =
      aml::name("_S5", aml::package({aml::integer(layout::kSleepTypeS5), aml::integer(0)}));
  return make_table("DSDT", 2, aml::join({s5, aml::scope("\\_SB", devices)}));
}

Result<GuestAddress> write_acpi_tables(GuestMemory& memory, const PlatformConfig& config) {
  Bytes area;
  const auto place = [&area](const Bytes& table) {
    area.resize((area.size() + 15) & ~std::size_t{15});
    const GuestAddress address(layout::kAcpiTables.value() + area.size());
    area.insert(area.end(), table.begin(), table.end());
    return address;
  };
  const GuestAddress dsdt = place(make_dsdt(config.mmio_devices, config.pci));
  const GuestAddress fadt = place(make_fadt(dsdt));
  const GuestAddress madt = place(make_madt(config.cpu_ids));
  Bytes pointers;
  append_object(pointers, le64(fadt.value()));
  append_object(pointers, le64(madt.value()));
  if (config.pci) {
    append_object(pointers, le64(place(make_mcfg()).value()));
  }
  const GuestAddress xsdt = place(make_table("XSDT", 1, pointers));
  if (area.size() > layout::kAcpiTablesMax) {
    return fail(ErrorCode::kConfig, fmt::format("{} devices do not fit into the ACPI tables; "
                                                "configure fewer",
                                                config.mmio_devices.size()));
  }
  Rsdp rsdp;
  rsdp.xsdt_address = xsdt.value();
  Bytes pointer;
  append_object(pointer, rsdp);
  pointer[offsetof(Rsdp, checksum)] = checksum(std::span(pointer).first(20));
  pointer[offsetof(Rsdp, extended_checksum)] = checksum(pointer);
  CHECK(memory.write(layout::kAcpiTables, std::as_bytes(std::span(area))));
  CHECK(memory.write(layout::kRsdp, std::as_bytes(std::span(pointer))));
  CHECK(memory.write(layout::kVmGenId, std::as_bytes(std::span(config.generation_id))));
  return layout::kRsdp;
}

GuestAddress generation_id_address() {
  return layout::kVmGenId;
}

Result<GuestAddress> write_platform_tables(GuestMemory& memory, const PlatformConfig& config) {
  write_smbios_tables(memory, config.uuid);
  return write_acpi_tables(memory, config);
}

}  // namespace vireo::arch
