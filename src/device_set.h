// SPDX-License-Identifier: Apache-2.0
// The devices of a machine and the buses that they sit on: the one place that knows concrete ones.
//
// Owned by Machine and used by nothing else; destroyed after the vCPUs, whose threads call into it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "devices/legacy/acpi_pm.h"
#include "devices/legacy/boot_timer.h"
#include "devices/legacy/cmos.h"
#include "devices/legacy/console.h"
#include "devices/legacy/i8042.h"
#include "devices/legacy/machine_events.h"
#include "devices/legacy/mark_port.h"
#include "devices/legacy/pvpanic.h"
#include "devices/legacy/serial_16550.h"
#include "src/bus/bus.h"
#include "src/config.h"
#include "src/io/reactor.h"
#include "src/kvm/vm.h"
#include "src/timeline.h"

namespace vireo {

class DeviceSet {
 public:
  /// What devices tell and need; all of it outlives the set.
  struct Context {
    KvmVm& vm;
    Reactor& reactor;
    MachineEvents& events;
    ConsoleListener& console_listener;
    const Timeline& timeline;
  };

  /// Opens the console. What lies between serial port and console is then put in by whoever wants
  /// it, before create().
  static Result<std::unique_ptr<DeviceSet>> open(const Config& config, const Context& context);
  DeviceSet(const DeviceSet&) = delete;
  DeviceSet& operator=(const DeviceSet&) = delete;
  ~DeviceSet() = default;

  /// Makes the devices; the guest's text goes to `serial_output`. Once, before freeze().
  void create(const Config& config, SerialOutput& serial_output);
  /// The buses are fixed from here on; the vCPU threads may start.
  void freeze();

  /// Begins to serve the console's reader. On the reactor's thread.
  void start() { console_->start(*serial_); }
  /// All devices as after create(), for a guest that was reset. While no vCPU runs.
  void reset();

  /// Presses the guest's ACPI power button. Any thread.
  void press_power_button();
  /// False where the guest has not enabled its keyboard. Any thread.
  bool send_ctrl_alt_del() { return i8042_->send_ctrl_alt_del(); }

  Console& console() { return *console_; }
  const Bus& ports() const { return ports_; }
  const Bus& mmio() const { return mmio_; }

 private:
  explicit DeviceSet(const Context& context) : context_(context) {}

  const Context context_;
  std::unique_ptr<Interrupt> serial_line_;
  std::unique_ptr<Interrupt> keyboard_line_;
  std::unique_ptr<Interrupt> event_line_;
  std::unique_ptr<Console> console_;
  std::unique_ptr<Serial16550> serial_;
  std::unique_ptr<I8042> i8042_;
  std::unique_ptr<Cmos> cmos_;
  std::unique_ptr<Pvpanic> pvpanic_;
  std::unique_ptr<MarkPort> mark_port_;
  std::unique_ptr<AcpiPm> acpi_pm_;
  std::unique_ptr<BootTimer> boot_timer_;
  Bus ports_;
  Bus mmio_;
};

}  // namespace vireo
