// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/i8042.h"

#include <array>

namespace vireo {

namespace {

// Status register.
constexpr std::uint8_t kStatusOutputFull = 0x01;
constexpr std::uint8_t kStatusSystemFlag = 0x04;
constexpr std::uint8_t kStatusUnlocked = 0x10;

// The controller's commands, by their common names.
constexpr std::uint8_t kCommandReadConfig = 0x20;
constexpr std::uint8_t kCommandWriteConfig = 0x60;
constexpr std::uint8_t kCommandAuxDisable = 0xa7;
constexpr std::uint8_t kCommandAuxTest = 0xa9;
constexpr std::uint8_t kCommandSelfTest = 0xaa;
constexpr std::uint8_t kCommandKeyboardTest = 0xab;
constexpr std::uint8_t kCommandKeyboardDisable = 0xad;
constexpr std::uint8_t kCommandKeyboardEnable = 0xae;
constexpr std::uint8_t kCommandWriteOutput = 0xd2;
constexpr std::uint8_t kCommandWriteAuxOutput = 0xd3;
constexpr std::uint8_t kCommandWriteAux = 0xd4;
constexpr std::uint8_t kCommandReset = 0xfe;

constexpr std::uint8_t kConfigKeyboardInterrupt = 0x01;
constexpr std::uint8_t kConfigKeyboardDisabled = 0x10;

constexpr std::uint8_t kSelfTestPassed = 0x55;
constexpr std::uint8_t kPortTestPassed = 0x00;
constexpr std::uint8_t kPortTestClockLow = 0x01;  // how an absent auxiliary port shows

// The keyboard's.
constexpr std::uint8_t kAcknowledge = 0xfa;
constexpr std::uint8_t kKeyboardReset = 0xff;
constexpr std::uint8_t kKeyboardResetDone = 0xaa;
constexpr std::uint8_t kKeyboardIdentify = 0xf2;
constexpr std::uint8_t kKeyboardSetLeds = 0xed;
constexpr std::uint8_t kKeyboardScancodeSet = 0xf0;
constexpr std::uint8_t kKeyboardSetRate = 0xf3;

}  // namespace

void I8042::Port::read(std::uint64_t /*offset*/, std::span<std::byte> data) {
  const std::scoped_lock lock(owner_.mutex_);
  for (std::byte& byte : data) {
    byte = std::byte{command_ ? owner_.status() : owner_.read_data()};
  }
}

void I8042::Port::write(std::uint64_t /*offset*/, std::span<const std::byte> data) {
  const auto value = std::to_integer<std::uint8_t>(data[0]);
  if (command_ && value == kCommandReset) {
    owner_.events_.reset();
    return;
  }
  const std::scoped_lock lock(owner_.mutex_);
  if (command_) {
    owner_.write_command(value);
  } else {
    owner_.write_data(value);
  }
}

bool I8042::send_ctrl_alt_del() {
  const std::scoped_lock lock(mutex_);
  if (!state_.self_tested || (state_.config & kConfigKeyboardDisabled) != 0) {
    return false;
  }
  // Scan code set 1, which the controller translates to by default: left ctrl, left alt, delete.
  constexpr std::array<std::uint8_t, 8> kKeys = {0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d};
  for (const std::uint8_t key : kKeys) {
    answer(key);
  }
  return true;
}

void I8042::reset() {
  const std::scoped_lock lock(mutex_);
  state_ = State();
}

void I8042::save(SnapshotWriter& writer) {
  const std::scoped_lock lock(mutex_);
  writer.add(0, State(state_));
}

Result<> I8042::restore(SnapshotReader& reader) {
  TRY_ASSIGN(State state, reader.take<State>(0));
  const std::scoped_lock lock(mutex_);
  state_ = std::move(state);
  return {};
}

std::uint8_t I8042::status() {
  std::uint8_t value = kStatusUnlocked;
  if (!state_.output.empty()) {
    value |= kStatusOutputFull;
  }
  if (state_.self_tested) {
    value |= kStatusSystemFlag;
  }
  return value;
}

std::uint8_t I8042::read_data() {
  if (state_.output.empty()) {
    return 0;
  }
  const auto value = std::to_integer<std::uint8_t>(state_.output.front());
  state_.output.erase(state_.output.begin());
  if (!state_.output.empty() && (state_.config & kConfigKeyboardInterrupt) != 0) {
    interrupt_.raise();  // one edge for each byte, as the chip does
  }
  return value;
}

void I8042::write_command(std::uint8_t value) {
  state_.expecting = 0;
  switch (value) {
    case kCommandReadConfig:
      answer(state_.config);
      break;
    case kCommandWriteConfig:
    case kCommandWriteOutput:
    case kCommandWriteAuxOutput:
    case kCommandWriteAux:
      state_.expecting = value;
      break;
    case kCommandSelfTest:
      state_.output.clear();
      state_.self_tested = true;
      answer(kSelfTestPassed);
      break;
    case kCommandKeyboardTest:
      answer(kPortTestPassed);
      break;
    case kCommandAuxTest:
      answer(kPortTestClockLow);
      break;
    case kCommandKeyboardDisable:
      state_.config |= kConfigKeyboardDisabled;
      break;
    case kCommandKeyboardEnable:
      state_.config &= static_cast<std::uint8_t>(~kConfigKeyboardDisabled);
      break;
    case kCommandAuxDisable:
    default:
      break;  // there is no auxiliary port, and nothing to say to the rest
  }
}

void I8042::write_data(std::uint8_t value) {
  const std::uint8_t command = state_.expecting;
  state_.expecting = 0;
  switch (command) {
    case kCommandWriteConfig:
      state_.config = value;
      break;
    case kCommandWriteOutput:
      answer(value);
      break;
    case kCommandWriteAuxOutput:
    case kCommandWriteAux:
      break;  // no auxiliary port: silence, and the driver's probe takes that for an answer
    default:
      keyboard_command(value);
      break;
  }
}

void I8042::keyboard_command(std::uint8_t value) {
  if (state_.keyboard_argument) {
    state_.keyboard_argument = false;
    answer(kAcknowledge);
    return;
  }
  answer(kAcknowledge);
  switch (value) {
    case kKeyboardReset:
      answer(kKeyboardResetDone);
      break;
    case kKeyboardIdentify:
      answer(0xab);  // an MF2 keyboard, translated
      answer(0x83);
      break;
    case kKeyboardSetLeds:
    case kKeyboardScancodeSet:
    case kKeyboardSetRate:
      state_.keyboard_argument = true;
      break;
    default:
      break;
  }
}

void I8042::answer(std::uint8_t value) {
  if (state_.output.size() >= State::kMaxOutput) {
    return;  // a guest that never reads costs no more than this
  }
  state_.output.push_back(std::byte{value});
  if (state_.output.size() == 1 && (state_.config & kConfigKeyboardInterrupt) != 0) {
    interrupt_.raise();
  }
}

}  // namespace vireo
