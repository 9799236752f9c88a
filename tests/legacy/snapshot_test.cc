// SPDX-License-Identifier: Apache-2.0
// Devices of a PC that are saved and go on as others of their kind.
#include <array>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <linux/serial_reg.h>

#include <fmt/core.h>

#include "devices/legacy/acpi_pm.h"
#include "devices/legacy/cmos.h"
#include "devices/legacy/i8042.h"
#include "tests/legacy/recorders.h"
#include "tests/support/catch.h"
#include "tests/support/hostile_sections.h"

namespace vireo {
namespace {

class Random {
 public:
  explicit Random(unsigned seed) : numbers_(seed) {}
  unsigned operator()() { return static_cast<unsigned>(numbers_()); }

 private:
  std::mt19937 numbers_;
};

/// One access of a byte, and what came of it.
std::string access(BusDevice& device, Random& random, std::uint64_t ports, unsigned value) {
  const std::uint64_t offset = random() % ports;
  if (random() % 2 == 0) {
    return fmt::format("{}: {:#x}", offset, in(device, offset));
  }
  out(device, offset, value);
  return fmt::format("{} = {:#x}", offset, value);
}

// Each has its device, and a step() that does something at random and tells all that is seen of it.

struct Port {
  std::string step(Random& random) {
    std::string seen;
    if (random() % 4 == 0) {
      std::vector<std::byte> bytes(random() % 6);
      for (std::byte& byte : bytes) {
        byte = static_cast<std::byte>(random());
      }
      seen = fmt::format("took {} of {}", device.receive(bytes), bytes.size());
    } else {
      seen = access(device, random, Serial16550::kPorts, random() & 0xffU);
    }
    return fmt::format("{}, {} edges, \"{}\", {} times empty", seen, interrupt.edges, output.text,
                       output.emptied);
  }
  void forget() {
    interrupt.edges = 0;
    output.text.clear();
    output.emptied = 0;
  }

  CountedInterrupt interrupt;
  RecordedOutput output;
  Serial16550 device{interrupt, output};
};

struct Keyboard {
  std::string step(Random& random) {
    constexpr std::array<unsigned, 14> kCommands = {0x20, 0x60, 0xa7, 0xa9, 0xaa, 0xab, 0xad,
                                                    0xae, 0xd2, 0xd3, 0xd4, 0xed, 0xf2, 0xff};
    std::string seen;
    if (random() % 16 == 0) {
      seen = device.send_ctrl_alt_del() ? "pressed" : "not pressed";
    } else {
      BusDevice& port = random() % 2 == 0 ? device.data_port() : device.command_port();
      seen = access(port, random, 1, kCommands.at(random() % kCommands.size()));
    }
    return fmt::format("{}, {} edges", seen, interrupt.edges);
  }
  void forget() { interrupt.edges = 0; }

  CountedInterrupt interrupt;
  RecordedEvents events;
  I8042 device{interrupt, events};
};

struct Clock {
  std::string step(Random& random) { return access(device, random, 2, random() & 0xffU); }
  void forget() {}

  Cmos device{[] { return std::time_t{1795231415}; }};
};

struct Events {
  std::string step(Random& random) {
    if (random() % 2 == 0) {
      device.notify(random());
      return fmt::format("{} edges", interrupt.edges);
    }
    std::array<std::byte, 4> word = {};
    device.read(4, std::span(word).first(random() % 4 == 0 ? 2 : 4));
    std::uint32_t value = 0;
    std::memcpy(&value, word.data(), sizeof(value));
    return fmt::format("{:#x}", value);
  }
  void forget() { interrupt.edges = 0; }

  CountedInterrupt interrupt;
  RecordedEvents events;
  AcpiPm device{interrupt, events, 1};
};

template <typename Bench>
std::vector<std::byte> saved(Bench& bench) {
  SnapshotWriter writer;
  bench.device.save(writer);
  REQUIRE(writer.sections().size() == 1);
  const std::span<const std::byte> bytes = writer.sections()[0].bytes;
  return {bytes.begin(), bytes.end()};
}

template <typename Bench>
Result<> restore(Bench& bench, std::span<const SnapshotSection> sections) {
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(sections));
  TRY(bench.device.restore(reader));
  return reader.finish();
}

TEMPLATE_TEST_CASE("legacy: what was restored goes on as what was saved", "", Port, Keyboard, Clock,
                   Events) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    INFO("seed " << seed);
    Random random(seed);
    TestType first;
    TestType second;  // has had a life of its own
    for (unsigned i = random() % 40; i > 0; --i) {
      first.step(random);
      second.step(random);
    }
    first.forget();
    second.forget();
    SnapshotWriter writer;
    first.device.save(writer);
    REQUIRE(restore(second, writer.sections()));
    REQUIRE(saved(second) == saved(first));
    Random other = random;
    for (int i = 0; i < 60; ++i) {
      REQUIRE(second.step(other) == first.step(random));
    }
    REQUIRE(saved(second) == saved(first));
  }
}

TEMPLATE_TEST_CASE("legacy: no section harms, and one that is refused changes nothing", "", Port,
                   Keyboard, Clock, Events) {
  Random random(7);
  const auto use = [&random](TestType& bench, int steps) {
    for (; steps > 0; --steps) {
      bench.step(random);
    }
  };
  for (int life = 0; life < 10; ++life) {
    TestType first;
    use(first, 30);
    SnapshotWriter writer;
    first.device.save(writer);
    const auto check = [&](std::span<const SnapshotSection> sections) {
      TestType second;
      use(second, 10);
      const std::vector<std::byte> before = saved(second);
      const bool taken = restore(second, sections).has_value();
      if (taken) {
        REQUIRE(std::ranges::equal(saved(second), sections[0].bytes));
      } else {
        REQUIRE(saved(second) == before);
      }
      use(second, 40);
      return taken;
    };
    for_each_flip(writer.sections(), check);
    for_each_length(writer.sections(), [&](std::span<const SnapshotSection> sections) {
      REQUIRE_FALSE(check(sections));
    });
  }
  TestType bench;
  CHECK_FALSE(restore(bench, {}));
}

/// What is said of a device's own section, made by `change` into another one.
template <typename Bench, typename Change>
std::string problem(Bench& bench, Change change) {
  SnapshotWriter writer;
  bench.device.save(writer);
  HostileSections hostile(writer.sections());
  change(hostile.bytes(0));
  const Result<> restored = restore(bench, hostile.sections());
  if (restored) {
    return "";
  }
  CHECK(restored.error().code() == ErrorCode::kBadInput);
  return restored.error().message();
}

TEST_CASE("serial: received bytes and a pending THRE are saved") {
  Port first;
  out(first.device, UART_FCR, UART_FCR_ENABLE_FIFO);
  out(first.device, UART_IER, UART_IER_THRI);
  out(first.device, UART_SCR, 0x5a);
  CHECK(first.device.receive(std::as_bytes(std::span("0123456789abcdefgh", 18))) == 16);
  SnapshotWriter writer;
  first.device.save(writer);

  Port second;
  REQUIRE(restore(second, writer.sections()));
  CHECK(second.interrupt.edges == 0);  // it is in the interrupt controller's state
  CHECK((in(second.device, UART_IIR) & 0x0fU) == UART_IIR_THRI);
  CHECK((in(second.device, UART_IIR) & 0x0fU) == UART_IIR_NO_INT);
  CHECK(in(second.device, UART_SCR) == 0x5a);
  CHECK(second.device.receive(std::as_bytes(std::span("x", 1))) == 0);
  for (const char c : std::string_view("0123456789abcdef")) {
    CHECK(in(second.device, UART_RX) == static_cast<unsigned char>(c));
  }
  CHECK((in(second.device, UART_LSR) & UART_LSR_DR) == 0);
  CHECK(second.output.emptied == 1);
}

TEST_CASE("serial: a FIFO holds 16 bytes, and one where it is off") {
  constexpr std::size_t kEnabled = 6;
  constexpr std::size_t kCount = 24;
  constexpr const char* kTooMany = "section serial 0: has more bytes than the FIFO holds";
  for (const unsigned enabled : {0U, 1U}) {
    for (const unsigned count : {0U, 1U, 2U, 15U, 16U, 17U, 255U}) {
      INFO(count << " bytes");
      Port port;
      const std::string said = problem(port, [&](std::vector<std::byte>& bytes) {
        bytes[kEnabled] = static_cast<std::byte>(enabled);
        bytes[kCount] = static_cast<std::byte>(count);
      });
      const unsigned most = enabled != 0 ? 16 : 1;
      CHECK(said == (count > most ? kTooMany : ""));
      const std::size_t room = said.empty() ? most - count : 1;
      CHECK(port.device.receive(std::array<std::byte, 20>{}) == room);
    }
  }
}

TEST_CASE("i8042, cmos: lists and numbers that cannot be are refused by name") {
  Keyboard keyboard;
  CHECK(problem(keyboard, [](std::vector<std::byte>& bytes) { bytes[4] = std::byte{33}; }) ==
        "section i8042 0: has a list of 33 entries, and may have 32");
  CHECK(problem(keyboard, [](std::vector<std::byte>& bytes) {
          bytes.resize(bytes.size() + 32);
          bytes[4] = std::byte{32};
        }).empty());
  out(keyboard.device.command_port(), 0, 0xa9);  // its answer has no room
  CHECK(saved(keyboard).size() == 8 + 32);

  Clock clock;
  CHECK(problem(clock, [](std::vector<std::byte>& bytes) { bytes[0] = std::byte{0x80}; }) ==
        "section cmos 0: has the index of no register");
  CHECK(problem(clock, [](std::vector<std::byte>& bytes) { bytes[0] = std::byte{0x7f}; }).empty());
}

}  // namespace
}  // namespace vireo
