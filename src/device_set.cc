// SPDX-License-Identifier: Apache-2.0
#include "src/device_set.h"

#include <ctime>

#include "arch/x86_64/layout.h"
#include "src/base/log.h"

namespace vireo {

namespace {

std::time_t wall_time() {
  return std::time(nullptr);
}

}  // namespace

Result<std::unique_ptr<DeviceSet>> DeviceSet::open(const Config& config, const Context& context) {
  auto devices = std::unique_ptr<DeviceSet>(new DeviceSet(context));
  devices->console_ = std::make_unique<Console>(context.reactor, context.console_listener);
  TRY(devices->console_->open(config.serial));
  if (const std::string& name = devices->console_->pty_name(); !name.empty()) {
    log_info("serial", "the console is {}", name);
  }
  return devices;
}

void DeviceSet::create(const Config& config, SerialOutput& serial_output) {
  MachineEvents& events = context_.events;
  serial_line_ = context_.vm.create_line_interrupt(layout::kCom1Gsi);
  keyboard_line_ = context_.vm.create_line_interrupt(layout::kKeyboardGsi);
  event_line_ = context_.vm.create_line_interrupt(layout::kGedGsi);

  serial_ = std::make_unique<Serial16550>(*serial_line_, serial_output);
  i8042_ = std::make_unique<I8042>(*keyboard_line_, events);
  cmos_ = std::make_unique<Cmos>(wall_time);
  pvpanic_ = std::make_unique<Pvpanic>(events);
  mark_port_ = std::make_unique<MarkPort>(events);
  acpi_pm_ = std::make_unique<AcpiPm>(*event_line_, events, layout::kResetValue);

  ports_.add(layout::kI8042DataPort, 1, i8042_->data_port(), "i8042");
  ports_.add(layout::kI8042CommandPort, 1, i8042_->command_port(), "i8042");
  ports_.add(layout::kCmosIndexPort, Cmos::kPorts, *cmos_, "cmos");
  ports_.add(layout::kMarkPort, 1, *mark_port_, "mark");
  ports_.add(layout::kCom1Port, Serial16550::kPorts, *serial_, "serial");
  ports_.add(layout::kPvpanicPort, 1, *pvpanic_, "pvpanic");
  ports_.add(layout::kSleepControlPort, AcpiPm::kPorts, *acpi_pm_, "acpi");
  if (config.process.boot_timer) {
    boot_timer_ =
        std::make_unique<BootTimer>(context_.timeline.start_ns(), context_.timeline.start_cpu_ns());
    mmio_.add(layout::kBootTimer.value(), layout::kBootTimerSize, *boot_timer_, "boot-timer");
  }
}

void DeviceSet::freeze() {
  ports_.freeze();
  mmio_.freeze();
}

void DeviceSet::reset() {
  serial_->reset();
  i8042_->reset();
  cmos_->reset();
  acpi_pm_->reset();
}

void DeviceSet::press_power_button() {
  acpi_pm_->notify(layout::kGedPowerButton);
}

}  // namespace vireo
