// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/acpi_pm.h"

#include <algorithm>

#include "src/base/endian.h"

namespace vireo {

namespace {

struct AcpiPmState {
  static constexpr std::string_view kTag = "acpi-pm";
  static constexpr std::uint32_t kVersion = 1;
  std::uint32_t pending = 0;
  void fields(auto& ar) { ar(pending); }
};

constexpr std::uint64_t kSleepControl = 0;
constexpr std::uint64_t kReset = 2;
constexpr std::uint64_t kEvents = 4;

// ACPI 6.5 §4.8.3.7, sleep control register: SLP_TYP in bits 2…4, SLP_EN in bit 5.
constexpr unsigned kSleepTypeShift = 2;
constexpr std::uint8_t kSleepTypeMask = 0x7;
constexpr std::uint8_t kSleepEnable = 1U << 5;

}  // namespace

void AcpiPm::read(std::uint64_t offset, std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{0});
  // One read takes all events along; a narrower one would tear them apart and takes none.
  if (offset == kEvents && data.size() == sizeof(std::uint32_t)) {
    const auto pending = std::bit_cast<std::array<std::byte, 4>>(
        le32(pending_.exchange(0, std::memory_order_acq_rel)));
    std::ranges::copy(pending, data.begin());
  }
}

void AcpiPm::write(std::uint64_t offset, std::span<const std::byte> data) {
  const auto value = std::to_integer<std::uint8_t>(data[0]);
  if (offset == kSleepControl) {
    const bool s5 = ((value >> kSleepTypeShift) & kSleepTypeMask) == kSleepTypeS5;
    if (s5 && (value & kSleepEnable) != 0) {
      events_.power_off();
    }
  } else if (offset == kReset && value == reset_value_) {
    events_.reset();
  }
}

void AcpiPm::notify(std::uint32_t bits) {
  pending_.fetch_or(bits, std::memory_order_acq_rel);
  interrupt_.raise();
}

void AcpiPm::save(SnapshotWriter& writer) const {
  writer.add(0, AcpiPmState{.pending = pending_.load(std::memory_order_acquire)});
}

Result<> AcpiPm::restore(SnapshotReader& reader) {
  TRY_ASSIGN(const AcpiPmState state, reader.take<AcpiPmState>(0));
  pending_.store(state.pending, std::memory_order_release);
  return {};
}

}  // namespace vireo
