// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/serial_16550.h"

#include <algorithm>

#include <linux/serial_reg.h>

namespace vireo {

namespace {

/// Modem lines of a terminal that is there: carrier, data set ready, clear to send.
constexpr std::uint8_t kConnected = UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;
constexpr std::uint8_t kImplementedInterrupts =
    UART_IER_RDI | UART_IER_THRI | UART_IER_RLSI | UART_IER_MSI;
constexpr std::uint8_t kFifosOn = 0xc0;  // IIR: 16550A with its FIFOs enabled

}  // namespace

void Serial16550::read(std::uint64_t offset, std::span<std::byte> data) {
  bool emptied = false;
  {
    const std::scoped_lock lock(mutex_);
    const bool was_empty = receiver_is_empty();
    // The chip decodes bytes; a wider access is that many byte accesses.
    for (std::byte& byte : data) {
      byte = std::byte{read_register(offset++ % kPorts)};
    }
    emptied = !was_empty && receiver_is_empty();
  }
  if (emptied) {
    output_.receiver_empty();
  }
}

void Serial16550::write(std::uint64_t offset, std::span<const std::byte> data) {
  bool emptied = false;
  {
    const std::scoped_lock lock(mutex_);
    const bool was_empty = receiver_is_empty();
    for (const std::byte byte : data) {
      write_register(offset++ % kPorts, std::to_integer<std::uint8_t>(byte));
    }
    // Clearing the FIFO makes room too, and so does the end of a loopback.
    emptied = !was_empty && receiver_is_empty();
  }
  if (emptied) {
    output_.receiver_empty();
  }
}

void Serial16550::reset() {
  {
    const std::scoped_lock lock(mutex_);
    state_ = State();
  }
  output_.receiver_empty();
}

void Serial16550::save(SnapshotWriter& writer) {
  const std::scoped_lock lock(mutex_);
  writer.add(0, State(state_));
}

Result<> Serial16550::restore(SnapshotReader& reader) {
  TRY_ASSIGN(const State state, reader.take<State>(0));
  if (state.fifo_count > (state.fifo_enabled ? kFifoSize : 1)) {
    return bad_section<State>(0, "has more bytes than the FIFO holds");
  }
  const std::scoped_lock lock(mutex_);
  state_ = state;
  return {};
}

std::size_t Serial16550::receive(std::span<const std::byte> bytes) {
  const std::scoped_lock lock(mutex_);
  if (loopback()) {
    return 0;  // the line is cut; what comes in waits
  }
  return push_received(bytes);
}

std::size_t Serial16550::push_received(std::span<const std::byte> bytes) {
  const std::size_t capacity = state_.fifo_enabled ? kFifoSize : 1;
  const std::size_t count = std::min(capacity - state_.fifo_count, bytes.size());
  for (const std::byte byte : bytes.first(count)) {
    state_.fifo[state_.fifo_count++] = std::to_integer<std::uint8_t>(byte);
  }
  if (count > 0 && (state_.interrupt_enable & UART_IER_RDI) != 0) {
    interrupt_.raise();
  }
  return count;
}

std::uint8_t Serial16550::read_register(std::uint64_t offset) {
  switch (offset) {
    case UART_RX:
      return divisor_latch() ? state_.divisor_low : pop_received();
    case UART_IER:
      return divisor_latch() ? state_.divisor_high : state_.interrupt_enable;
    case UART_IIR:
      return interrupt_identification();
    case UART_LCR:
      return state_.line_control;
    case UART_MCR:
      return state_.modem_control;
    case UART_LSR:
      return line_status();
    case UART_MSR:
      return modem_status();
    default:
      return state_.scratch;
  }
}

void Serial16550::write_register(std::uint64_t offset, std::uint8_t value) {
  switch (offset) {
    case UART_TX:
      if (divisor_latch()) {
        state_.divisor_low = value;
      } else {
        write_data(value);
      }
      break;
    case UART_IER:
      if (divisor_latch()) {
        state_.divisor_high = value;
        break;
      }
      state_.interrupt_enable = value & kImplementedInterrupts;
      // The transmitter is empty, so enabling its interrupt raises it at once: the driver's way to
      // start sending.
      state_.transmit_interrupt = (value & UART_IER_THRI) != 0;
      if (state_.transmit_interrupt || ((value & UART_IER_RDI) != 0 && state_.fifo_count > 0)) {
        interrupt_.raise();
      }
      break;
    case UART_FCR:
      state_.fifo_enabled = (value & UART_FCR_ENABLE_FIFO) != 0;
      if ((value & UART_FCR_CLEAR_RCVR) != 0 || !state_.fifo_enabled) {
        state_.fifo_count = 0;
      }
      break;
    case UART_LCR:
      state_.line_control = value;
      break;
    case UART_MCR:
      state_.modem_control = value & 0x1f;
      break;
    case UART_SCR:
      state_.scratch = value;
      break;
    default:
      break;  // LSR and MSR are read-only
  }
}

void Serial16550::write_data(std::uint8_t value) {
  const std::byte byte{value};
  if (loopback()) {
    push_received(std::span(&byte, 1));
  } else {
    output_.transmit(byte);
  }
  if ((state_.interrupt_enable & UART_IER_THRI) != 0) {
    state_.transmit_interrupt = true;
    interrupt_.raise();
  }
}

std::uint8_t Serial16550::pop_received() {
  if (state_.fifo_count == 0) {
    return 0;
  }
  const std::uint8_t value = state_.fifo[0];
  std::copy(state_.fifo.begin() + 1,
            state_.fifo.begin() + static_cast<std::ptrdiff_t>(state_.fifo_count),
            state_.fifo.begin());
  --state_.fifo_count;
  return value;
}

std::uint8_t Serial16550::interrupt_identification() {
  const std::uint8_t fifos = state_.fifo_enabled ? kFifosOn : 0;
  if ((state_.interrupt_enable & UART_IER_RDI) != 0 && state_.fifo_count > 0) {
    return fifos | UART_IIR_RDI;
  }
  if (state_.transmit_interrupt) {
    state_.transmit_interrupt = false;  // reading it acknowledges it
    return fifos | UART_IIR_THRI;
  }
  return fifos | UART_IIR_NO_INT;
}

std::uint8_t Serial16550::line_status() const {
  return static_cast<std::uint8_t>(UART_LSR_THRE | UART_LSR_TEMT |
                                   (state_.fifo_count > 0 ? UART_LSR_DR : 0));
}

std::uint8_t Serial16550::modem_status() const {
  if (!loopback()) {
    return kConnected;
  }
  // Looped back, the outputs appear on the inputs, which is how drivers recognize the chip.
  const std::uint8_t control = state_.modem_control;
  return static_cast<std::uint8_t>(((control & UART_MCR_RTS) != 0 ? UART_MSR_CTS : 0) |
                                   ((control & UART_MCR_DTR) != 0 ? UART_MSR_DSR : 0) |
                                   ((control & UART_MCR_OUT1) != 0 ? UART_MSR_RI : 0) |
                                   ((control & UART_MCR_OUT2) != 0 ? UART_MSR_DCD : 0));
}

bool Serial16550::divisor_latch() const {
  return (state_.line_control & UART_LCR_DLAB) != 0;
}

bool Serial16550::receiver_is_empty() const {
  return !loopback() && state_.fifo_count == 0;
}

bool Serial16550::loopback() const {
  return (state_.modem_control & UART_MCR_LOOP) != 0;
}

}  // namespace vireo
