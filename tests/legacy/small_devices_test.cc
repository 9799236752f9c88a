// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstring>

#include "devices/legacy/acpi_pm.h"
#include "devices/legacy/cmos.h"
#include "devices/legacy/i8042.h"
#include "devices/legacy/mark_port.h"
#include "devices/legacy/pvpanic.h"
#include "devices/legacy/text_matcher.h"
#include "tests/legacy/recorders.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr unsigned kOutputFull = 0x01;

struct Keyboard {
  CountedInterrupt interrupt;
  RecordedEvents events;
  I8042 controller{interrupt, events};

  unsigned answer() {
    REQUIRE((in(controller.command_port(), 0) & kOutputFull) != 0);
    return in(controller.data_port(), 0);
  }
};

TEST_CASE("i8042: command 0xfe is a reset") {
  Keyboard keyboard;
  out(keyboard.controller.command_port(), 0, 0xfe);
  CHECK(keyboard.events.log == std::vector<std::string>{"reset"});
}

TEST_CASE("i8042: Linux's probe is answered at once") {
  Keyboard keyboard;
  BusDevice& command = keyboard.controller.command_port();
  BusDevice& data = keyboard.controller.data_port();
  CHECK((in(command, 0) & kOutputFull) == 0);
  out(command, 0, 0x20);
  CHECK(keyboard.answer() == 0x01);
  out(command, 0, 0x60);
  out(data, 0, 0x54);
  out(command, 0, 0x20);
  CHECK(keyboard.answer() == 0x54);
  out(command, 0, 0xaa);
  CHECK(keyboard.answer() == 0x55);
  out(command, 0, 0xab);
  CHECK(keyboard.answer() == 0x00);
  out(command, 0, 0xa9);
  CHECK(keyboard.answer() != 0x00);  // there is no mouse port
  out(data, 0, 0xff);
  CHECK(keyboard.answer() == 0xfa);
  CHECK(keyboard.answer() == 0xaa);
  out(data, 0, 0xf2);
  CHECK(keyboard.answer() == 0xfa);
  CHECK(keyboard.answer() == 0xab);
  CHECK(keyboard.answer() == 0x83);
  out(data, 0, 0xed);
  CHECK(keyboard.answer() == 0xfa);
  out(data, 0, 0x07);
  CHECK(keyboard.answer() == 0xfa);
}

TEST_CASE("i8042: ctrl-alt-del is a row of scan codes with an edge each") {
  Keyboard keyboard;
  CHECK_FALSE(keyboard.controller.send_ctrl_alt_del());  // nobody has set the keyboard up
  out(keyboard.controller.command_port(), 0, 0xaa);
  CHECK(keyboard.answer() == 0x55);
  keyboard.interrupt.edges = 0;
  REQUIRE(keyboard.controller.send_ctrl_alt_del());
  for (const unsigned code : {0x1dU, 0x38U, 0xe0U, 0x53U, 0xe0U, 0xd3U, 0xb8U, 0x9dU}) {
    CHECK(keyboard.answer() == code);
  }
  CHECK(keyboard.interrupt.edges == 8);
}

TEST_CASE("i8042: a guest that never reads costs a bounded buffer") {
  Keyboard keyboard;
  for (int i = 0; i < 10000; ++i) {
    out(keyboard.controller.data_port(), 0, 0xff);
  }
  int count = 0;
  while ((in(keyboard.controller.command_port(), 0) & kOutputFull) != 0) {
    in(keyboard.controller.data_port(), 0);
    ++count;
  }
  CHECK(count <= 32);
}

TEST_CASE("cmos: wall time in BCD, and never an update in progress") {
  Cmos cmos([] { return std::time_t{1795231415}; });  // 2026-11-21 03:23:35 UTC, a Saturday
  const auto reg = [&cmos](unsigned index) {
    out(cmos, 0, index | 0x80);  // bit 7 is the NMI mask
    return in(cmos, 1);
  };
  CHECK(reg(0x00) == 0x35);
  CHECK(reg(0x02) == 0x23);
  CHECK(reg(0x04) == 0x03);
  CHECK(reg(0x06) == 0x07);
  CHECK(reg(0x07) == 0x21);
  CHECK(reg(0x08) == 0x11);
  CHECK(reg(0x09) == 0x26);
  CHECK(reg(0x32) == 0x20);
  CHECK((reg(0x0a) & 0x80) == 0);
  CHECK((reg(0x0b) & 0x06) == 0x02);
  CHECK((reg(0x0d) & 0x80) != 0);
  CHECK(reg(0x40) == 0);
}

TEST_CASE("acpi: S5 powers off, the reset value resets, nothing else does") {
  CountedInterrupt interrupt;
  RecordedEvents events;
  AcpiPm acpi(interrupt, events, 1);
  out(acpi, 0, 5 << 2);               // SLP_TYP without SLP_EN
  out(acpi, 0, (3 << 2) | (1 << 5));  // S3 is not ours
  out(acpi, 2, 0);
  CHECK(events.log.empty());
  out(acpi, 0, (5 << 2) | (1 << 5));
  out(acpi, 2, 1);
  CHECK(events.log == std::vector<std::string>{"power_off", "reset"});
}

TEST_CASE("acpi: one 32-bit read takes all events, and each notification is an edge") {
  CountedInterrupt interrupt;
  RecordedEvents events;
  AcpiPm acpi(interrupt, events, 1);
  acpi.notify(1);
  acpi.notify(4);
  CHECK(interrupt.edges == 2);
  CHECK(in(acpi, 4) == 0);  // a byte alone takes none
  std::array<std::byte, 4> word = {};
  acpi.read(4, word);
  std::uint32_t value = 0;
  std::memcpy(&value, word.data(), sizeof(value));
  CHECK(value == 5);
  acpi.read(4, word);
  CHECK(std::to_integer<int>(word[0]) == 0);
}

TEST_CASE("pvpanic and mark port") {
  RecordedEvents events;
  Pvpanic pvpanic(events);
  MarkPort mark(events);
  CHECK(in(pvpanic, 0) == 3);
  out(pvpanic, 0, 2);  // a crash kernel takes over
  CHECK(events.log.empty());
  out(pvpanic, 0, 1);
  out(mark, 0, 200);
  CHECK(in(mark, 0) == 0xff);
  CHECK(events.log == std::vector<std::string>{"panicked", "mark 200"});
}

TEST_CASE("text matcher: finds overlapping beginnings, and each occurrence") {
  TextMatcher matcher("aab");
  int found = 0;
  for (const char c : std::string_view("aaab aab aa aab")) {
    found += matcher.feed(c) ? 1 : 0;
  }
  CHECK(found == 3);
}

}  // namespace
}  // namespace vireo
