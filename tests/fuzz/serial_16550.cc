// SPDX-License-Identifier: Apache-2.0
// Fuzz target: the 16550 between a hostile guest and a console. The input is a row of steps: the
// guest reads and writes registers in any size, the console offers bytes. After each step the
// registers are held against what the chip's data sheet says of one another.
#include "devices/legacy/serial_16550.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include <linux/serial_reg.h>

#include "src/base/error.h"
#include "tests/fuzz/fuzz_input.h"

namespace vireo {
namespace {

struct EdgeCounter final : Interrupt {
  void raise() override { ++edges; }
  std::uint64_t edges = 0;
};

struct ByteCounter final : SerialOutput {
  void transmit(std::byte /*byte*/) override { ++transmitted; }
  void receiver_empty() override { ++emptied; }
  std::uint64_t transmitted = 0;
  std::uint64_t emptied = 0;
};

/// A guest and a console around one port.
class Bench {
 public:
  void step(FuzzInput& input) {
    const std::uint8_t what = input.byte();
    const std::uint64_t offset = what & 7U;
    const std::size_t size =
        std::min<std::size_t>(std::size_t{1} << ((what >> 3) & 3U), Serial16550::kPorts - offset);
    std::array<std::byte, Serial16550::kPorts> bytes = {};
    const std::span data = std::span(bytes).first(size);
    switch (what >> 5) {
      case 0:
      case 1:
      case 2:
        input.fill(data);
        guest_writes(offset, data);
        break;
      case 3:
      case 4:
        guest_reads(offset, data);
        break;
      case 5:
        check_interrupt();
        break;
      default:
        console_offers(input, what & 0x3fU);
        break;
    }
    check_registers();
  }

 private:
  void guest_writes(std::uint64_t offset, std::span<const std::byte> data) {
    const std::uint64_t before = output_.transmitted;
    port_.write(offset, data);
    CHECK(output_.transmitted - before <= data.size());
  }

  void guest_reads(std::uint64_t offset, std::span<std::byte> data) {
    const std::uint64_t edges = interrupt_.edges;
    const std::uint64_t transmitted = output_.transmitted;
    port_.read(offset, data);
    CHECK(output_.transmitted == transmitted);
    CHECK(interrupt_.edges == edges);
  }

  void console_offers(FuzzInput& input, std::size_t count) {
    std::array<std::byte, 64> bytes = {};
    const std::span offered = std::span(bytes).first(count);
    input.fill(offered);
    const bool enabled = (guarded(UART_IER) & UART_IER_RDI) != 0;
    const bool loopback = (peek(UART_MCR) & UART_MCR_LOOP) != 0;
    const std::uint64_t edges = interrupt_.edges;
    const std::size_t taken = port_.receive(offered);
    CHECK(taken <= std::min(count, Serial16550::kFifoSize));
    CHECK(taken == 0 || !loopback);
    CHECK(interrupt_.edges - edges == (taken > 0 && enabled ? 1U : 0U));
    CHECK(taken == 0 || (peek(UART_LSR) & UART_LSR_DR) != 0);
    waiting_ = taken < count;
    emptied_when_full_ = output_.emptied;
  }

  /// Reads that have no effect, between the guest's accesses.
  std::uint8_t peek(std::uint64_t offset) {
    std::byte byte{};
    port_.read(offset, std::span(&byte, 1));
    return std::to_integer<std::uint8_t>(byte);
  }
  void poke(std::uint64_t offset, std::uint8_t value) {
    const std::byte byte{value};
    port_.write(offset, std::span(&byte, 1));
  }
  /// A register that hides behind the divisor latch.
  std::uint8_t guarded(std::uint64_t offset) {
    const std::uint8_t line_control = peek(UART_LCR);
    poke(UART_LCR, static_cast<std::uint8_t>(line_control & ~UART_LCR_DLAB));
    const std::uint8_t value = peek(offset);
    poke(UART_LCR, line_control);
    return value;
  }

  void check_registers() {
    const std::uint8_t status = peek(UART_LSR);
    CHECK((status & (UART_LSR_THRE | UART_LSR_TEMT)) == (UART_LSR_THRE | UART_LSR_TEMT));
    CHECK((guarded(UART_IER) & 0xf0) == 0);
    const std::uint8_t modem_control = peek(UART_MCR);
    CHECK((modem_control & 0xe0) == 0);
    // A console that could not hand over everything is told as soon as there is room again.
    const bool room = (status & UART_LSR_DR) == 0 && (modem_control & UART_MCR_LOOP) == 0;
    CHECK(!waiting_ || !room || output_.emptied > emptied_when_full_);
  }

  /// What IIR says is what the other registers say, and was announced by an edge. Reading it takes
  /// the transmitter's cause away, so this is a step of its own.
  void check_interrupt() {
    const std::uint8_t enabled = guarded(UART_IER);
    const bool received = (peek(UART_LSR) & UART_LSR_DR) != 0 && (enabled & UART_IER_RDI) != 0;
    const std::uint8_t identification = peek(UART_IIR);
    if ((identification & UART_IIR_NO_INT) != 0) {
      CHECK(!received);
      edges_when_idle_ = interrupt_.edges;
      return;
    }
    CHECK(interrupt_.edges > edges_when_idle_);
    if (received) {
      CHECK((identification & UART_IIR_ID) == UART_IIR_RDI);
    } else {
      CHECK((identification & UART_IIR_ID) == UART_IIR_THRI && (enabled & UART_IER_THRI) != 0);
      CHECK((peek(UART_IIR) & UART_IIR_NO_INT) != 0);
      edges_when_idle_ = interrupt_.edges;
    }
  }

  EdgeCounter interrupt_;
  ByteCounter output_;
  Serial16550 port_{interrupt_, output_};
  std::uint64_t edges_when_idle_ = 0;
  bool waiting_ = false;  // the console has bytes that the port did not take
  std::uint64_t emptied_when_full_ = 0;
};

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vireo::FuzzInput input(data, size);
  vireo::Bench bench;
  while (!input.empty()) {
    bench.step(input);
  }
  return 0;
}
