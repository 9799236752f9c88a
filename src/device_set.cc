// SPDX-License-Identifier: Apache-2.0
#include "src/device_set.h"

#include <array>
#include <ctime>
#include <utility>

#include <fmt/core.h>

#include "arch/x86_64/layout.h"
#include "devices/rng/rng_device.h"
#include "devices/virtio/uapi.h"
#include "src/base/log.h"

namespace vireo {

namespace {

/// The interrupt lines that are left for devices, in the order in which they get them.
constexpr auto kDeviceGsis = [] {
  std::array<std::uint32_t, layout::kLastGsi - layout::kFirstDeviceGsi> gsis = {};
  std::size_t count = 0;
  for (std::uint32_t gsi = layout::kFirstDeviceGsi; gsi <= layout::kLastGsi; ++gsi) {
    if (gsi != layout::kGedGsi) {
      gsis.at(count++) = gsi;
    }
  }
  return gsis;
}();

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

Result<> DeviceSet::create(const Config& config, SerialOutput& serial_output) {
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
  return create_virtio(config);
}

Result<> DeviceSet::create_virtio(const Config& config) {
  if (config.rng) {
    TRY(add_virtio("virtio-rng", std::make_unique<RngDevice>(config.rng->rate_limit)));
  }
  return {};
}

/// The next window and the next interrupt line.
Result<> DeviceSet::add_virtio(std::string_view name, std::unique_ptr<VirtioDevice> device) {
  const std::size_t number = virtio_.size();
  if (number >= kDeviceGsis.size()) {
    return fail(ErrorCode::kConfig,
                fmt::format("machine.transport: virtio-mmio has interrupt lines for {} devices; "
                            "configure fewer",
                            kDeviceGsis.size()));
  }
  auto slot = std::make_unique<VirtioSlot>();
  slot->name = name;
  slot->device = std::move(device);
  slot->window = {
      .address = GuestAddress(layout::kVirtioMmio.value() + number * layout::kVirtioMmioSize),
      .size = layout::kVirtioMmioSize,
      .gsi = kDeviceGsis.at(number)};
  TRY_ASSIGN(slot->line, context_.vm.create_irqfd(slot->window.gsi));
  const std::array reactors = {&context_.reactor};
  TRY_ASSIGN(slot->transport,
             MmioTransport::create(*slot->device, context_.memory, reactors, *slot->line));
  VirtioTransport& core = slot->transport->core();
  for (unsigned queue = 0; queue < core.queue_count(); ++queue) {
    TRY(context_.vm.add_ioeventfd(
        GuestAddress(slot->window.address.value() + VIRTIO_MMIO_QUEUE_NOTIFY), queue,
        core.kick_fd(queue)));
  }
  slot->quiesced_task.bind<DeviceSet, &DeviceSet::on_quiesced>(this);
  mmio_.add(slot->window.address.value(), slot->window.size, *slot->transport, slot->name);
  virtio_.push_back(std::move(slot));
  return {};
}

std::vector<arch::MmioDevice> DeviceSet::mmio_devices() const {
  std::vector<arch::MmioDevice> devices;
  for (const auto& slot : virtio_) {
    devices.push_back(slot->window);
  }
  return devices;
}

void DeviceSet::quiesce(Task& done) {
  if (quiesced_ != nullptr) {
    CHECK(quiesced_ == &done);  // asked for again before it was done
    return;
  }
  quiesced_ = &done;
  moving_ = virtio_.size() + 1;  // and this function
  for (const auto& slot : virtio_) {
    slot->transport->core().quiesce(slot->quiesced_task);
  }
  on_quiesced();
}

void DeviceSet::on_quiesced() {
  if (--moving_ == 0) {
    context_.reactor.post(*std::exchange(quiesced_, nullptr));
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
  for (const auto& slot : virtio_) {
    slot->transport->power_cycle();
  }
}

void DeviceSet::press_power_button() {
  acpi_pm_->notify(layout::kGedPowerButton);
}

}  // namespace vireo
