// SPDX-License-Identifier: Apache-2.0
// Fuzz target: both buses with the machine's devices on them, under a guest that reads and writes
// whatever it likes wherever it likes, while the host presses the power button and ctrl-alt-del.
// Each access is held against what the bus promises for the place, and the devices against what
// they may do to the machine.
#include "src/bus/bus.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "arch/x86_64/layout.h"
#include "devices/legacy/acpi_pm.h"
#include "devices/legacy/boot_timer.h"
#include "devices/legacy/cmos.h"
#include "devices/legacy/i8042.h"
#include "devices/legacy/machine_events.h"
#include "devices/legacy/mark_port.h"
#include "devices/legacy/pvpanic.h"
#include "devices/legacy/serial_16550.h"
#include "src/base/log.h"
#include "tests/fuzz/fuzz_input.h"

namespace vireo {
namespace {

struct NoInterrupt final : Interrupt {
  void raise() override {}
};

struct NoOutput final : SerialOutput {
  void transmit(std::byte /*byte*/) override {}
  void receiver_empty() override {}
};

struct CountedEvents final : MachineEvents {
  void power_off() override { ++count; }
  void reset() override { ++count; }
  void panicked() override { ++count; }
  void mark(std::uint8_t number) override { count += number == last_byte ? 1 : 2; }
  std::uint64_t count = 0;
  std::uint8_t last_byte = 0;
};

/// The machine's devices where Machine puts them.
class Board {
 public:
  Board() {
    ports.add(layout::kI8042DataPort, 1, i8042.data_port(), "i8042");
    ports.add(layout::kI8042CommandPort, 1, i8042.command_port(), "i8042");
    ports.add(layout::kCmosIndexPort, Cmos::kPorts, cmos, "cmos");
    ports.add(layout::kMarkPort, 1, mark_port, "mark");
    ports.add(layout::kCom1Port, Serial16550::kPorts, serial, "serial");
    ports.add(layout::kPvpanicPort, 1, pvpanic, "pvpanic");
    ports.add(layout::kSleepControlPort, AcpiPm::kPorts, acpi_pm, "acpi");
    ports.freeze();
    mmio.add(layout::kBootTimer.value(), layout::kBootTimerSize, boot_timer, "boot-timer");
    mmio.freeze();
  }

  NoInterrupt interrupt;
  NoOutput output;
  CountedEvents events;
  Serial16550 serial{interrupt, output};
  I8042 i8042{interrupt, events};
  Cmos cmos{[] { return std::time_t{1795231415}; }};
  MarkPort mark_port{events};
  Pvpanic pvpanic{events};
  AcpiPm acpi_pm{interrupt, events, layout::kResetValue};
  BootTimer boot_timer{0, 0};
  Bus ports;
  Bus mmio;
};

/// An address on or around a device, or anywhere.
std::uint64_t pick_address(FuzzInput& input, const Bus& bus, unsigned how) {
  if (how == 3) {
    return input.number(8);
  }
  const std::uint8_t which = input.byte();
  const Bus::Entry& entry = bus.entries()[which % bus.entries().size()];
  const std::uint64_t end = how == 2 ? entry.base + entry.size : entry.base;
  return end + input.number(how == 0 ? 1 : 2) % (entry.size + 8) - (how == 2 ? 8 : 0);
}

/// What holds [address, address + size) whole, found the slow way.
const Bus::Entry* expected_entry(const Bus& bus, std::uint64_t address, std::uint64_t size) {
  for (const Bus::Entry& entry : bus.entries()) {
    if (address >= entry.base && address - entry.base < entry.size &&
        size <= entry.size - (address - entry.base)) {
      return &entry;
    }
  }
  return nullptr;
}

void access(FuzzInput& input, Board& board, std::uint8_t what) {
  const Bus& bus = (what & 0x40) == 0 ? board.ports : board.mmio;
  const std::size_t size = std::size_t{1} << ((what >> 2) & 3U);
  const std::uint64_t address = pick_address(input, bus, what & 3U);
  std::array<std::byte, 8> bytes = {};
  const std::span data = std::span(bytes).first(size);
  const Bus::Entry* const entry = expected_entry(bus, address, size);
  CHECK(bus.find(address, size) == entry);
  const std::uint64_t events = board.events.count;
  if ((what & 0x20) != 0) {
    input.fill(data);
    board.events.last_byte = std::to_integer<std::uint8_t>(data[0]);
    CHECK(bus.write(address, data) == (entry != nullptr));
    CHECK(board.events.count - events <= (entry != nullptr ? 1U : 0U));
  } else {
    CHECK(bus.read(address, data) == (entry != nullptr));
    CHECK(board.events.count == events);
    const auto is_ones = [](std::byte byte) { return byte == std::byte{0xff}; };
    CHECK(entry != nullptr || std::ranges::all_of(data, is_ones));
  }
}

/// The guest takes all that the keyboard controller holds: that has an end.
void drain_keyboard(Board& board) {
  constexpr std::byte kOutputFull{0x01};
  constexpr int kMaxOutput = 32;
  std::byte status{};
  std::byte data{};
  for (int count = 0;; ++count) {
    CHECK(board.ports.read(layout::kI8042CommandPort, std::span(&status, 1)));
    if ((status & kOutputFull) == std::byte{0}) {
      return;
    }
    CHECK(count < kMaxOutput);
    CHECK(board.ports.read(layout::kI8042DataPort, std::span(&data, 1)));
  }
}

void host_step(FuzzInput& input, Board& board, std::uint8_t what) {
  std::array<std::byte, 16> typed = {};
  std::array<std::byte, 4> pending = {};
  switch (what & 3U) {
    case 0:
      board.i8042.send_ctrl_alt_del();
      break;
    case 1:
      board.acpi_pm.notify(layout::kGedPowerButton);
      CHECK(board.ports.read(layout::kGedPort, pending));
      CHECK((pending[0] & std::byte{layout::kGedPowerButton}) != std::byte{0});
      break;
    case 2:
      input.fill(typed);
      CHECK(board.serial.receive(typed) <= typed.size());
      break;
    default:
      drain_keyboard(board);
      break;
  }
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Guests may fill a log; a fuzzer's terminal needs not.
  static const bool quiet = vireo::open_log({.level = vireo::LogLevel::kOff}).has_value();
  CHECK(quiet);
  vireo::FuzzInput input(data, size);
  vireo::Board board;
  while (!input.empty()) {
    const std::uint8_t what = input.byte();
    if ((what & 0x80) != 0) {
      vireo::host_step(input, board, what);
    } else {
      vireo::access(input, board, what);
    }
  }
  vireo::drain_keyboard(board);
  return 0;
}
