// SPDX-License-Identifier: Apache-2.0
#include "src/device_set.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>
#include <utility>

#include <fmt/core.h>

#include "arch/x86_64/layout.h"
#include "devices/block/overlay_disk.h"
#include "devices/rng/rng_device.h"
#include "devices/virtio/uapi.h"
#include "src/base/log.h"

namespace vireo {

namespace {

/// Where on the bus a device of that number is: behind the host bridge.
unsigned pci_slot(unsigned number) {
  return number + 1;
}

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

Result<> DeviceSet::create(const Config& config, std::span<const arch::MmioDevice> places,
                           std::vector<OpenDisk> disks, SerialOutput& serial_output) {
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
  return create_virtio(config, places, std::move(disks));
}

DeviceSet::VirtioSlot& DeviceSet::add_slot(std::string_view name,
                                           std::unique_ptr<VirtioDevice> device, bool one_reactor) {
  auto slot = std::make_unique<VirtioSlot>();
  slot->name = name;
  slot->quiesced_task.bind<DeviceSet, &DeviceSet::on_quiesced>(this);
  slot->resumed_task.bind<DeviceSet, &DeviceSet::on_resumed>(this);
  slot->flush.bind<DeviceSet, &DeviceSet::on_flushed>(this);
  // The threads get the queues of all devices in turn.
  const std::size_t threads = context_.io_reactors.size();
  const std::size_t wanted =
      std::min(threads, one_reactor ? std::size_t{1} : device->queue_max_sizes().size());
  slot->reactors.push_back(&context_.reactor);
  for (std::size_t i = 0; i < wanted; ++i) {
    slot->reactors.push_back(context_.io_reactors[next_io_reactor_++ % threads]);
  }
  slot->device = std::move(device);
  virtio_.push_back(std::move(slot));
  return *virtio_.back();
}

Result<> DeviceSet::create_virtio(const Config& config, std::span<const arch::MmioDevice> places,
                                  std::vector<OpenDisk> disks) {
  for (OpenDisk& disk : disks) {
    const bool one_reactor = disk.disk->one_reactor();
    auto device = std::make_unique<BlockDevice>(disk.settings, std::move(disk.disk));
    BlockDevice& block = *device;
    add_slot("virtio-blk", std::move(device), one_reactor).block = &block;
  }
  if (config.rng) {
    add_slot("virtio-rng", std::make_unique<RngDevice>(config.rng->rate_limit), false);
  }

  if (over_pci(config)) {
    pci_host_ = std::make_unique<KvmPciHost>(context_.vm);
    pci_root_ = std::make_unique<PciRoot>(
        *GuestRange::create(layout::kPciMmio32,
                            layout::kPciEcam.value() - layout::kPciMmio32.value()),
        *pci_host_);
    mmio_.add(layout::kPciMmio32.value(), layout::kPciEcam.value() - layout::kPciMmio32.value(),
              pci_root_->mmio(), "pci");
    mmio_.add(layout::kPciEcam.value(), PciRoot::kEcamSize, pci_root_->ecam(), "pci-config");
  }
  for (std::size_t number = 0; number < virtio_.size(); ++number) {
    TRY(pci_root_ ? add_pci(*virtio_[number], number)
                  : add_mmio(*virtio_[number], number, places[number],
                             has_acpi(config) ? layout::kLastGsi : layout::kLastPicGsi));
  }
  return {};
}

Result<> DeviceSet::add_mmio(VirtioSlot& slot, std::size_t number, const arch::MmioDevice& place,
                             std::uint32_t last_gsi) {
  if (place.gsi > last_gsi) {
    return fail(
        ErrorCode::kConfig,
        fmt::format("machine.transport: \"mmio\" has interrupt lines for {} devices{}; "
                    "wants \"pci\" or fewer",
                    number, last_gsi < layout::kLastGsi ? " of a guest with acpi=off" : ""));
  }
  TRY_ASSIGN(slot.line, context_.vm.create_irqfd(place.gsi));
  TRY_ASSIGN(slot.mmio,
             MmioTransport::create(*slot.device, context_.memory, slot.reactors, *slot.line));
  for (unsigned queue = 0; queue < slot.core().queue_count(); ++queue) {
    TRY(context_.vm.add_ioeventfd(GuestAddress(place.address.value() + VIRTIO_MMIO_QUEUE_NOTIFY),
                                  sizeof(std::uint32_t), queue, slot.core().kick_fd(queue)));
  }
  mmio_.add(place.address.value(), place.size, *slot.mmio, slot.name);
  return {};
}

Result<> DeviceSet::add_pci(VirtioSlot& slot, std::size_t number) {
  constexpr std::size_t kMost = PciRoot::kSlots - 1;
  if (number >= kMost) {
    return fail(ErrorCode::kConfig,
                fmt::format("machine.transport: the PCI bus has slots for {} devices; configure "
                            "fewer",
                            kMost));
  }
  slot.router = std::make_unique<KvmMsiRouter>(context_.vm);
  TRY_ASSIGN(slot.pci,
             PciTransport::create(*slot.device, context_.memory, slot.reactors, *slot.router));
  return pci_root_->add(pci_slot(static_cast<unsigned>(number)), slot.pci->function());
}

void DeviceSet::quiesce(Task& done) {
  if (giving_up_) {
    next_quiesce_ = &done;
    return;
  }
  if (quiesced_ != nullptr) {
    CHECK(quiesced_ == &done);  // asked for again before it was done
    return;
  }
  quiesced_ = &done;
  moving_ = virtio_.size() + changing_ + 1;  // and this function
  for (const auto& slot : virtio_) {
    slot->core().quiesce(slot->quiesced_task);
  }
  on_quiesced();
}

DeviceSet::VirtioSlot& DeviceSet::slot_of(const std::string& disk) {
  const auto found = std::ranges::find_if(virtio_, [&disk](const auto& slot) {
    return slot->block != nullptr && slot->block->id() == disk;
  });
  CHECK(found != virtio_.end());
  return **found;
}

Result<> DeviceSet::change_disk(const std::string& id, BlockChange::Wanted wanted,
                                BlockChange::Done done) {
  VirtioSlot& slot = slot_of(id);
  if (slot.block->change().busy()) {
    return fail(ErrorCode::kConfig, "a change before this one is not done yet; ask again later");
  }
  if (giving_up_) {
    return fail(ErrorCode::kConfig, "a disk has not answered for long; ask again when it has");
  }
  if (quiesced_ != nullptr || still_) {
    return fail(ErrorCode::kConfig,
                "the VM is about to end or to restart, or stands still after a "
                "snapshot; resume it first");
  }
  BlockChange::Place place = {.first = &context_.reactor, .host = &slot.core()};
  for (unsigned queue = 0; queue < slot.core().queue_count(); ++queue) {
    place.queues.push_back(&slot.core().queue_reactor(queue));
  }
  TRY(slot.block->change().begin(std::move(wanted), place,
                                 [this, done = std::move(done)](const Result<>& result) {
                                   done(result);
                                   --changing_;
                                   if (quiesced_ != nullptr) {
                                     on_quiesced();
                                   }
                                 }));
  ++changing_;
  return {};
}

bool DeviceSet::one_thread_serves(const std::string& disk) {
  const VirtioSlot& slot = slot_of(disk);
  return slot.reactors.size() <= 2;  // the first serves no queue where there are others
}

void DeviceSet::freeze_disk(const std::string& disk, OverlayFile overlay) {
  CHECK(still_);
  BlockDevice& block = *slot_of(disk).block;
  OverlayBacking backing = block.disk().freeze();
  const std::string& what = block.id();
  if (Result<> shared = make_shared_file(backing.overlays.empty() ? backing.image
                                                                  : backing.overlays.front().file);
      !shared) {
    log_warn("block", "disk {}: what is frozen stays this VM's alone: {}", what,
             shared.error().message());
  }
  block.exchange_disk(std::make_unique<OverlayDisk>(std::move(overlay), std::move(backing)));
}

void DeviceSet::on_quiesced() {
  if (--moving_ == 0 && !giving_up_) {
    flush_disks();
  }
}

std::vector<std::string> DeviceSet::give_up() {
  CHECK(quiesced_ != nullptr && !giving_up_);
  giving_up_ = true;
  quiesced_ = nullptr;
  std::vector<std::string> held_up;
  resuming_ = virtio_.size() + 1;  // and this function
  for (const auto& slot : virtio_) {
    if (slot->block != nullptr && (slot->flushing || slot->core().moving())) {
      held_up.push_back(slot->block->id());
    }
    if (!slot->flushing) {
      slot->core().resume(slot->resumed_task);
    }
  }
  on_resumed();
  return held_up;
}

/// What disks hold back would be lost with this process. Their queues stand still, and leave them
/// to this thread.
void DeviceSet::flush_disks() {
  flushing_ = 1;  // this function
  for (const auto& slot : virtio_) {
    if (slot->block != nullptr && slot->block->disk().wants_flush()) {
      ++flushing_;
      slot->flushing = true;
      slot->flush.kind = DiskOp::Kind::kFlush;
      slot->block->disk().start(slot->flush, context_.reactor.ring());
    }
  }
  one_flushed();
}

void DeviceSet::on_flushed(DiskOp& op, int errnum) {
  VirtioSlot& slot =
      **std::ranges::find_if(virtio_, [&op](const auto& s) { return &s->flush == &op; });
  if (errnum != 0) {
    log_error("block",
              "disk {}: its last flush failed: {}; what was written since the one before is lost",
              slot.block->id(), std::strerror(errnum));
  }
  slot.flushing = false;
  if (giving_up_) {
    slot.core().resume(slot.resumed_task);  // it was held up by this
  } else {
    one_flushed();
  }
}

void DeviceSet::one_flushed() {
  if (--flushing_ == 0) {
    still_ = true;
    context_.reactor.post(*std::exchange(quiesced_, nullptr));
  }
}

std::vector<const BlockDevice*> DeviceSet::disks() const {
  std::vector<const BlockDevice*> disks;
  for (const auto& slot : virtio_) {
    if (slot->block != nullptr) {
      disks.push_back(slot->block);
    }
  }
  return disks;
}

void DeviceSet::freeze() {
  ports_.freeze();
  mmio_.freeze();
}

void DeviceSet::reset() {
  still_ = false;
  serial_->reset();
  i8042_->reset();
  cmos_->reset();
  acpi_pm_->reset();
  for (const auto& slot : virtio_) {
    slot->mmio ? slot->mmio->power_cycle() : slot->pci->power_cycle();
  }
  if (pci_root_) {
    pci_root_->power_cycle();
  }
}

void DeviceSet::resume(Task& done) {
  CHECK(resumed_ == nullptr);
  resumed_ = &done;
  resuming_ = virtio_.size() + 1;  // and this function
  for (const auto& slot : virtio_) {
    slot->core().resume(slot->resumed_task);
  }
  on_resumed();
}

void DeviceSet::on_resumed() {
  if (--resuming_ > 0) {
    return;
  }
  still_ = false;
  if (!std::exchange(giving_up_, false)) {
    context_.reactor.post(*std::exchange(resumed_, nullptr));
  } else if (next_quiesce_ != nullptr) {
    quiesce(*std::exchange(next_quiesce_, nullptr));
  }
}

void DeviceSet::save(SnapshotWriter& writer) {
  serial_->save(writer);
  i8042_->save(writer);
  cmos_->save(writer);
  acpi_pm_->save(writer);
  if (pci_root_) {
    pci_root_->save(writer);
  }
  for (unsigned number = 0; number < virtio_.size(); ++number) {
    VirtioSlot& slot = *virtio_[number];
    slot.mmio ? slot.mmio->save(writer, number) : slot.pci->save(writer, pci_slot(number));
  }
}

Result<> DeviceSet::restore(SnapshotReader& reader) {
  TRY(serial_->restore(reader));
  TRY(i8042_->restore(reader));
  TRY(cmos_->restore(reader));
  TRY(acpi_pm_->restore(reader));
  if (pci_root_) {
    TRY(pci_root_->restore(reader));
  }
  for (unsigned number = 0; number < virtio_.size(); ++number) {
    VirtioSlot& slot = *virtio_[number];
    TRY(slot.mmio ? slot.mmio->restore(reader, number)
                  : slot.pci->restore(reader, pci_slot(number)));
  }
  return {};
}

void DeviceSet::tell_new_generation() {
  acpi_pm_->notify(layout::kGedVmGenId);
}

void DeviceSet::press_power_button() {
  acpi_pm_->notify(layout::kGedPowerButton);
}

}  // namespace vireo
