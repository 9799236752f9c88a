// SPDX-License-Identifier: Apache-2.0
// The sequences are those by which Linux's 8250 driver finds and uses the chip.
#include "devices/legacy/serial_16550.h"

#include <array>
#include <string>

#include <linux/serial_reg.h>

#include "tests/legacy/recorders.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

struct Port {
  CountedInterrupt interrupt;
  RecordedOutput output;
  Serial16550 serial{interrupt, output};
};

std::size_t receive(Port& port, std::string_view text) {
  return port.serial.receive(std::as_bytes(std::span(text)));
}

TEST_CASE("serial: what is written goes out, and the transmitter is always empty") {
  Port port;
  for (const char c : std::string_view("vireo")) {
    CHECK((in(port.serial, UART_LSR) & (UART_LSR_THRE | UART_LSR_TEMT)) ==
          (UART_LSR_THRE | UART_LSR_TEMT));
    out(port.serial, UART_TX, static_cast<unsigned char>(c));
  }
  CHECK(port.output.text == "vireo");
  CHECK(port.interrupt.edges == 0);
}

TEST_CASE("serial: autoconfig sees a 16550A") {
  Port port;
  // IER takes four bits, scratch all, loopback turns outputs into inputs, FCR enables FIFOs in IIR.
  out(port.serial, UART_IER, 0xff);
  CHECK(in(port.serial, UART_IER) == 0x0f);
  out(port.serial, UART_IER, 0);
  CHECK(in(port.serial, UART_IER) == 0);
  out(port.serial, UART_SCR, 0xa5);
  CHECK(in(port.serial, UART_SCR) == 0xa5);
  out(port.serial, UART_MCR, UART_MCR_LOOP | UART_MCR_OUT2 | UART_MCR_RTS);
  CHECK((in(port.serial, UART_MSR) & 0xf0) == (UART_MSR_DCD | UART_MSR_CTS));
  out(port.serial, UART_MCR, 0);
  CHECK((in(port.serial, UART_MSR) & 0xf0) == (UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS));
  out(port.serial, UART_FCR, UART_FCR_ENABLE_FIFO);
  CHECK((in(port.serial, UART_IIR) & 0xc0) == 0xc0);
  out(port.serial, UART_LCR, UART_LCR_DLAB);
  out(port.serial, UART_DLL, 1);
  CHECK(in(port.serial, UART_DLL) == 1);
  out(port.serial, UART_LCR, UART_LCR_WLEN8);
  CHECK(in(port.serial, UART_RX) == 0);
  CHECK(port.output.text.empty());
}

TEST_CASE("serial: the transmit interrupt comes when enabled and after each byte, once") {
  Port port;
  out(port.serial, UART_IER, UART_IER_THRI);
  CHECK(port.interrupt.edges == 1);
  CHECK((in(port.serial, UART_IIR) & 0x0f) == UART_IIR_THRI);
  CHECK((in(port.serial, UART_IIR) & 0x0f) == UART_IIR_NO_INT);
  out(port.serial, UART_TX, 'x');
  CHECK(port.interrupt.edges == 2);
  CHECK((in(port.serial, UART_IIR) & 0x0f) == UART_IIR_THRI);
}

TEST_CASE("serial: received bytes wait in the FIFO, no more than fit, and interrupt") {
  Port port;
  out(port.serial, UART_FCR, UART_FCR_ENABLE_FIFO);
  out(port.serial, UART_IER, UART_IER_RDI);
  CHECK(receive(port, "0123456789abcdefXYZ") == 16);
  CHECK(receive(port, "XYZ") == 0);
  CHECK(port.interrupt.edges == 1);
  CHECK((in(port.serial, UART_IIR) & 0x0f) == UART_IIR_RDI);
  for (const char c : std::string_view("0123456789abcdef")) {
    CHECK((in(port.serial, UART_LSR) & UART_LSR_DR) != 0);
    CHECK(in(port.serial, UART_RX) == static_cast<unsigned char>(c));
  }
  CHECK((in(port.serial, UART_LSR) & UART_LSR_DR) == 0);
  CHECK(port.output.emptied == 1);
  CHECK(receive(port, "XYZ") == 3);
}

TEST_CASE("serial: without FIFO one byte waits; a cleared FIFO is empty") {
  Port port;
  CHECK(receive(port, "ab") == 1);
  out(port.serial, UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
  CHECK((in(port.serial, UART_LSR) & UART_LSR_DR) == 0);
}

TEST_CASE("serial: loopback brings bytes back and keeps the line out") {
  Port port;
  out(port.serial, UART_MCR, UART_MCR_LOOP);
  out(port.serial, UART_TX, 'l');
  CHECK(port.output.text.empty());
  CHECK(receive(port, "x") == 0);
  CHECK(in(port.serial, UART_RX) == 'l');
  for (int i = 0; i < 100; ++i) {
    out(port.serial, UART_TX, 'l');  // more than the FIFO holds
  }
  CHECK((in(port.serial, UART_LSR) & UART_LSR_DR) != 0);
}

TEST_CASE("serial: without FIFO a loopback holds one byte, and input goes on behind it") {
  Port port;
  out(port.serial, UART_MCR, UART_MCR_LOOP);
  for (int i = 0; i < 5; ++i) {
    out(port.serial, UART_TX, 'l');
  }
  out(port.serial, UART_MCR, 0);
  CHECK(receive(port, std::string(256, 'x')) == 0);
  CHECK(in(port.serial, UART_RX) == 'l');
  CHECK(receive(port, "x") == 1);
}

TEST_CASE("serial: a byte that comes by loopback interrupts as any other") {
  Port port;
  out(port.serial, UART_IER, UART_IER_RDI);
  out(port.serial, UART_MCR, UART_MCR_LOOP);
  out(port.serial, UART_TX, 'l');
  CHECK(port.interrupt.edges == 1);
  CHECK((in(port.serial, UART_IIR) & 0x0f) == UART_IIR_RDI);
}

TEST_CASE("serial: whatever makes room for input again is told to the console") {
  Port port;
  CHECK(receive(port, "ab") == 1);
  out(port.serial, UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
  CHECK(port.output.emptied == 1);
  out(port.serial, UART_MCR, UART_MCR_LOOP);
  CHECK(receive(port, "b") == 0);
  CHECK(port.output.emptied == 1);
  out(port.serial, UART_MCR, 0);
  CHECK(port.output.emptied == 2);
  CHECK(receive(port, "b") == 1);
}

TEST_CASE("serial: accesses wider than a byte touch the following registers only") {
  Port port;
  std::array<std::byte, 8> all = {};
  port.serial.read(0, all);
  CHECK(std::to_integer<unsigned>(all[UART_LSR]) == (UART_LSR_THRE | UART_LSR_TEMT));
  port.serial.write(4, std::span(all).first(4));
  CHECK(port.output.text.empty());
}

}  // namespace
}  // namespace vireo
