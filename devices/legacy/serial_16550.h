// SPDX-License-Identifier: Apache-2.0
// A 16550A UART as Linux's 8250 driver knows it: eight registers, two FIFOs, one edge interrupt.
//
// Owned by Machine. read() and write() come from vCPU threads, receive() from the reactor; one
// short lock guards the registers. The transmitter is always empty: a byte goes to the SerialOutput
// at once, which never blocks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>

#include "src/bus/bus.h"
#include "src/bus/interrupt.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

/// Where the guest's bytes go, and who is told that there is room for more of ours.
class SerialOutput {
 public:
  virtual ~SerialOutput() = default;
  /// A byte the guest sent. vCPU threads, never two at a time; never blocks.
  virtual void transmit(std::byte byte) = 0;
  /// The receive FIFO is empty again, read or cleared: receive() takes bytes. vCPU threads.
  virtual void receiver_empty() = 0;
};

class Serial16550 final : public BusDevice {
 public:
  static constexpr std::uint64_t kPorts = 8;
  static constexpr std::size_t kFifoSize = 16;

  Serial16550(Interrupt& interrupt, SerialOutput& output)
      : interrupt_(interrupt), output_(output) {}

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

  /// Puts bytes for the guest into the receive FIFO; returns how many it took.
  std::size_t receive(std::span<const std::byte> bytes);

  /// As at power-on; what was received and not read is gone.
  void reset();

  // While no vCPU runs. What restore() finds may be anybody's; an error leaves the port as it was.
  void save(SnapshotWriter& writer);
  Result<> restore(SnapshotReader& reader);

 private:
  /// All that a guest can see: plain numbers.
  struct State {
    static constexpr std::string_view kTag = "serial";
    static constexpr std::uint32_t kVersion = 1;

    std::uint8_t interrupt_enable = 0;
    std::uint8_t line_control = 0;
    std::uint8_t modem_control = 0;
    std::uint8_t scratch = 0;
    std::uint8_t divisor_low = 12;  // 9600 baud, the power-on value of PCs; only ever read back
    std::uint8_t divisor_high = 0;
    bool fifo_enabled = false;
    bool transmit_interrupt = false;  // THRE is pending until IIR is read
    std::array<std::uint8_t, kFifoSize> fifo = {};
    std::uint32_t fifo_count = 0;

    void fields(auto& ar) {
      ar(interrupt_enable, line_control, modem_control, scratch, divisor_low, divisor_high,
         fifo_enabled, transmit_interrupt, fifo, fifo_count);
    }
  };

  std::uint8_t read_register(std::uint64_t offset);
  void write_register(std::uint64_t offset, std::uint8_t value);
  void write_data(std::uint8_t value);
  std::uint8_t pop_received();
  std::size_t push_received(std::span<const std::byte> bytes);
  std::uint8_t interrupt_identification();
  std::uint8_t line_status() const;
  std::uint8_t modem_status() const;
  bool divisor_latch() const;
  bool loopback() const;
  bool receiver_is_empty() const;

  Interrupt& interrupt_;
  SerialOutput& output_;
  std::mutex mutex_;
  State state_;
};

}  // namespace vireo
