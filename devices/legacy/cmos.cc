// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/cmos.h"

#include "src/base/utc.h"

namespace vireo {

namespace {

// Registers of the MC146818, and the century where ACPI's FADT says it is.
constexpr std::uint8_t kSeconds = 0x00;
constexpr std::uint8_t kMinutes = 0x02;
constexpr std::uint8_t kHours = 0x04;
constexpr std::uint8_t kDayOfWeek = 0x06;
constexpr std::uint8_t kDayOfMonth = 0x07;
constexpr std::uint8_t kMonth = 0x08;
constexpr std::uint8_t kYear = 0x09;
constexpr std::uint8_t kStatusA = 0x0a;
constexpr std::uint8_t kStatusB = 0x0b;
constexpr std::uint8_t kStatusD = 0x0d;
constexpr std::uint8_t kCentury = 0x32;

constexpr std::uint8_t kStatusA32kHz = 0x26;  // the usual divider; bit 7, update in progress, is 0
constexpr std::uint8_t kStatusB24Hours = 0x02;  // BCD numbers, 24 hours
constexpr std::uint8_t kStatusDValid = 0x80;

constexpr std::uint8_t kIndexMask = 0x7f;  // bit 7 of the index port masks NMIs on a PC

std::uint8_t bcd(int value) {
  return static_cast<std::uint8_t>(((value / 10) << 4) | (value % 10));
}

}  // namespace

void Cmos::reset() {
  const std::scoped_lock lock(mutex_);
  state_ = {};
}

void Cmos::save(SnapshotWriter& writer) {
  const std::scoped_lock lock(mutex_);
  writer.add(0, State(state_));
}

Result<> Cmos::restore(SnapshotReader& reader) {
  TRY_ASSIGN(const State state, reader.take<State>(0));
  if ((state.index & ~kIndexMask) != 0) {
    return bad_section<State>(0, "has the index of no register");
  }
  const std::scoped_lock lock(mutex_);
  state_ = state;
  return {};
}

void Cmos::read(std::uint64_t offset, std::span<std::byte> data) {
  const std::scoped_lock lock(mutex_);
  for (std::byte& byte : data) {
    byte = offset == 0 ? std::byte{0xff} : std::byte{read_register(state_.index)};
    offset = 1;
  }
}

void Cmos::write(std::uint64_t offset, std::span<const std::byte> data) {
  const std::scoped_lock lock(mutex_);
  if (offset == 0) {
    state_.index = std::to_integer<std::uint8_t>(data[0]) & kIndexMask;
  }
  // Setting the clock has no effect: it is the host's, as guests of kvmclock expect.
}

std::uint8_t Cmos::read_register(std::uint8_t index) const {
  const std::tm time = utc_time(now_());
  switch (index) {
    case kSeconds:
      return bcd(time.tm_sec);
    case kMinutes:
      return bcd(time.tm_min);
    case kHours:
      return bcd(time.tm_hour);
    case kDayOfWeek:
      return bcd(time.tm_wday + 1);
    case kDayOfMonth:
      return bcd(time.tm_mday);
    case kMonth:
      return bcd(time.tm_mon + 1);
    case kYear:
      return bcd(time.tm_year % 100);
    case kCentury:
      return bcd((time.tm_year + 1900) / 100);
    case kStatusA:
      return kStatusA32kHz;
    case kStatusB:
      return kStatusB24Hours;
    case kStatusD:
      return kStatusDValid;
    default:
      return 0;
  }
}

}  // namespace vireo
