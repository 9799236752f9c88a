// SPDX-License-Identifier: Apache-2.0
// SMBIOS 3 (DSP0134): who made the machine, and its UUID, which guests take for their machine id.
#include "arch/x86_64/smbios.h"

#include <algorithm>
#include <bit>
#include <initializer_list>
#include <numeric>
#include <string_view>

#include "arch/x86_64/layout.h"
#include "src/base/endian.h"

namespace vireo::arch {

namespace {

using Bytes = std::vector<std::uint8_t>;

/// The 64-bit entry point, DSP0134 §5.2.2.
struct EntryPoint64 {
  std::array<char, 5> anchor = {'_', 'S', 'M', '3', '_'};
  std::uint8_t checksum = 0;
  std::uint8_t length = 24;
  std::uint8_t major = 3;
  std::uint8_t minor = 2;
  std::uint8_t docrev = 0;
  std::uint8_t revision = 1;
  std::uint8_t reserved = 0;
  le32 table_max_size;
  le64 table_address;
};
static_assert(sizeof(EntryPoint64) == 24);

constexpr std::uint8_t kTypeFirmware = 0;
constexpr std::uint8_t kTypeSystem = 1;
constexpr std::uint8_t kTypeChassis = 3;
constexpr std::uint8_t kTypeEnd = 127;

/// A structure: header, formatted part, its strings, and a zero behind them.
void append_structure(Bytes& table, std::uint8_t type, const Bytes& formatted,
                      std::initializer_list<std::string_view> strings) {
  const auto handle = static_cast<std::uint8_t>(type);
  const Bytes header = {type, static_cast<std::uint8_t>(4 + formatted.size()), handle, 0};
  table.insert(table.end(), header.begin(), header.end());
  table.insert(table.end(), formatted.begin(), formatted.end());
  for (const std::string_view text : strings) {
    table.insert(table.end(), text.begin(), text.end());
    table.push_back(0);
  }
  if (strings.size() == 0) {
    table.push_back(0);
  }
  table.push_back(0);
}

Bytes firmware() {
  // Vendor, version, segment, date, ROM size, characteristics (8; bit 3: not supported),
  // extension (2; bit 4: this is a virtual machine), release and controller numbers (4).
  return {1, 2, 0, 0, 3, 0, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0xff, 0xff};
}

Bytes system(const std::array<std::uint8_t, 16>& uuid) {
  Bytes bytes = {1, 2, 0, 0};  // manufacturer, product, no version, no serial number
  // The first three fields of the UUID are little-endian in SMBIOS (§7.2.1).
  for (const std::size_t i :
       {3U, 2U, 1U, 0U, 5U, 4U, 7U, 6U, 8U, 9U, 10U, 11U, 12U, 13U, 14U, 15U}) {
    bytes.push_back(uuid[i]);
  }
  constexpr std::uint8_t kWakeUpPowerSwitch = 6;
  bytes.insert(bytes.end(), {kWakeUpPowerSwitch, 0, 0});
  return bytes;
}

Bytes chassis() {
  constexpr std::uint8_t kTypeOther = 1;
  constexpr std::uint8_t kSafe = 3;
  return {1, kTypeOther, 0, 0, 0, kSafe, kSafe, kSafe, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0};
}

}  // namespace

void write_smbios_tables(GuestMemory& memory, const std::array<std::uint8_t, 16>& uuid) {
  constexpr GuestAddress kTable(layout::kSmbios.value() + 0x20);
  Bytes table;
  append_structure(table, kTypeFirmware, firmware(), {"vireo", VIREO_VERSION, "01/01/2026"});
  append_structure(table, kTypeSystem, system(uuid), {"vireo", "vireo VM"});
  append_structure(table, kTypeChassis, chassis(), {"vireo"});
  append_structure(table, kTypeEnd, {}, {});

  EntryPoint64 entry;
  entry.table_max_size = static_cast<std::uint32_t>(table.size());
  entry.table_address = kTable.value();
  const auto raw = std::bit_cast<std::array<std::uint8_t, sizeof(entry)>>(entry);
  entry.checksum = static_cast<std::uint8_t>(-std::accumulate(raw.begin(), raw.end(), 0U));
  CHECK(memory.write_object(layout::kSmbios, entry));
  CHECK(memory.write(kTable, std::as_bytes(std::span(table))));
}

}  // namespace vireo::arch
