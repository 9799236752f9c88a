// SPDX-License-Identifier: Apache-2.0
// Enough of the i8042 keyboard controller for a reset by command 0xfe and for ctrl-alt-del: a
// keyboard without a user, which answers every command at once so that a guest's probe never waits.
//
// Owned by Machine; called from vCPU threads, send_ctrl_alt_del() from any. The ranges are the data
// port (0x60) and the command and status port (0x64), one object each in front of the same state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "devices/legacy/machine_events.h"
#include "src/bus/bus.h"
#include "src/bus/interrupt.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

class I8042 {
 public:
  I8042(Interrupt& keyboard_interrupt, MachineEvents& events)
      : interrupt_(keyboard_interrupt), events_(events) {}

  BusDevice& data_port() { return data_port_; }
  BusDevice& command_port() { return command_port_; }

  /// Presses and releases the three keys; Linux's default answer is an orderly reboot. False where
  /// the guest has not enabled its keyboard.
  bool send_ctrl_alt_del();

  /// As at power-on.
  void reset();

  // As those of Serial16550.
  void save(SnapshotWriter& writer);
  Result<> restore(SnapshotReader& reader);

 private:
  class Port final : public BusDevice {
   public:
    Port(I8042& owner, bool command) : owner_(owner), command_(command) {}
    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

   private:
    I8042& owner_;
    bool command_;
  };

  std::uint8_t read_data();
  std::uint8_t status();
  void write_data(std::uint8_t value);
  void write_command(std::uint8_t value);
  void keyboard_command(std::uint8_t value);
  void answer(std::uint8_t value);

  Interrupt& interrupt_;
  MachineEvents& events_;
  Port data_port_{*this, false};
  Port command_port_{*this, true};

  /// All that a guest can change.
  struct State {
    static constexpr std::string_view kTag = "i8042";
    static constexpr std::uint32_t kVersion = 1;
    static constexpr std::size_t kMaxOutput = 32;

    std::vector<std::byte> output;   // for the guest, the oldest first
    std::uint8_t config = 0x01;      // the command byte: keyboard interrupt on
    std::uint8_t expecting = 0;      // the controller command whose data byte comes next, or 0
    bool keyboard_argument = false;  // the keyboard takes one more byte of its last command
    bool self_tested = false;

    void fields(auto& ar) {
      ar(config, expecting, keyboard_argument, self_tested);
      ar.list(output, kMaxOutput);
    }
  };
  std::mutex mutex_;
  State state_;
};

}  // namespace vireo
