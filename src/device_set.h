// SPDX-License-Identifier: Apache-2.0
// The devices of a machine and the buses that they sit on: the one place that knows concrete ones.
//
// Owned by Machine and used by nothing else; destroyed after the vCPUs, whose threads call into it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arch/arch.h"
#include "devices/block/overlay_file.h"
#include "devices/legacy/acpi_pm.h"
#include "devices/legacy/boot_timer.h"
#include "devices/legacy/cmos.h"
#include "devices/legacy/console.h"
#include "devices/legacy/i8042.h"
#include "devices/legacy/machine_events.h"
#include "devices/legacy/mark_port.h"
#include "devices/legacy/pvpanic.h"
#include "devices/legacy/serial_16550.h"
#include "devices/pci/root.h"
#include "devices/virtio/mmio_transport.h"
#include "devices/virtio/pci_transport.h"
#include "src/bus/bus.h"
#include "src/config.h"
#include "src/disks.h"
#include "src/io/reactor.h"
#include "src/kvm/vm.h"
#include "src/pci_host.h"
#include "src/timeline.h"

namespace vireo {

class DeviceSet {
 public:
  /// What devices tell and need; all of it outlives the set.
  struct Context {
    KvmVm& vm;
    GuestMemory& memory;
    Reactor& reactor;
    std::span<Reactor* const> io_reactors;  ///< serve the queues, where there are any
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

  /// Makes the devices, those of virtio-mmio at `places`; the guest's text goes to `serial_output`.
  /// Once, before freeze(). Errors: kConfig where there are more than the machine has room for.
  Result<> create(const Config& config, std::span<const arch::MmioDevice> places,
                  std::vector<OpenDisk> disks, SerialOutput& serial_output);
  /// The buses are fixed from here on; the vCPU threads may start.
  void freeze();

  /// Begins to serve the console's reader. On the reactor's thread.
  void start() { console_->start(*serial_); }
  /// Has all devices stand still: nothing of theirs is in flight, and disks hold nothing back.
  /// `done` runs then. On the reactor's thread, while no vCPU runs.
  void quiesce(Task& done);
  /// A quiesce() that takes too long is taken back, and its `done` does not run: each device goes
  /// on when it has ended what holds it up. Returns the ids of the disks that have not.
  std::vector<std::string> give_up();
  /// Whether a disk has not answered since then.
  bool giving_up() const { return giving_up_; }
  /// The end of that: their queues are served again; `done` runs when all are. On the reactor's
  /// thread, before the vCPUs run.
  void resume(Task& done);
  /// All devices as after create(), for a guest that was reset. While they stand still.
  void reset();
  /// All devices, in their sections. While they stand still.
  void save(SnapshotWriter& writer);
  /// As they were saved, and standing still: resume() follows. The interrupt controllers and the
  /// guest's memory are as they were saved already. Errors: kBadInput.
  Result<> restore(SnapshotReader& reader);

  /// Changes a disk while the guest uses it: BlockChange. Errors: kConfig where it cannot be now.
  /// On the reactor's thread.
  Result<> change_disk(const std::string& id, BlockChange::Wanted wanted, BlockChange::Done done);

  /// Whether a change_disk() is not done yet.
  bool changing_disks() const { return changing_ > 0; }
  /// Whether one thread serves all queues of that disk.
  bool one_thread_serves(const std::string& disk);
  /// Has that disk only be read from now on, and `overlay` over it written in its place. While all
  /// stand still. On the reactor's thread.
  void freeze_disk(const std::string& disk, OverlayFile overlay);

  /// Bytes of a disk that there is.
  std::uint64_t disk_size(const std::string& id) { return slot_of(id).block->disk().size(); }

  /// Tells the guest that its generation id is another one.
  void tell_new_generation();
  /// Presses the guest's ACPI power button. Any thread.
  void press_power_button();
  /// False where the guest has not enabled its keyboard. Any thread.
  bool send_ctrl_alt_del() { return i8042_->send_ctrl_alt_del(); }

  Console& console() { return *console_; }
  /// Removes its socket's name, where the set itself cannot be destroyed. After everything else.
  void close_console() { console_.reset(); }
  bool has_pci() const { return pci_root_ != nullptr; }
  /// The disks, in the guest's order.
  std::vector<const BlockDevice*> disks() const;
  const Bus& ports() const { return ports_; }
  const Bus& mmio() const { return mmio_; }

 private:
  /// A virtio device with what makes it one of this machine, over one transport or the other.
  struct VirtioSlot {
    VirtioTransport& core() { return mmio ? mmio->core() : pci->core(); }

    std::string_view name;  // "virtio-rng", for the exit profile; a literal
    std::unique_ptr<VirtioDevice> device;
    BlockDevice* block = nullptr;  // the same, where it is one
    DiskOp flush;
    bool flushing = false;
    std::vector<Reactor*> reactors;  // see VirtioTransport::Context
    std::unique_ptr<Interrupt> line;
    std::unique_ptr<MmioTransport> mmio;
    std::unique_ptr<KvmMsiRouter> router;
    std::unique_ptr<PciTransport> pci;
    Task quiesced_task;
    Task resumed_task;
  };

  explicit DeviceSet(const Context& context) : context_(context) {}

  Result<> create_virtio(const Config& config, std::span<const arch::MmioDevice> places,
                         std::vector<OpenDisk> disks);
  VirtioSlot& slot_of(const std::string& disk);
  VirtioSlot& add_slot(std::string_view name, std::unique_ptr<VirtioDevice> device,
                       bool one_reactor);
  Result<> add_mmio(VirtioSlot& slot, std::size_t number, const arch::MmioDevice& place,
                    std::uint32_t last_gsi);
  Result<> add_pci(VirtioSlot& slot, std::size_t number);
  void on_resumed();
  void on_quiesced();
  void flush_disks();
  void on_flushed(DiskOp& op, int errnum);
  void one_flushed();

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
  std::unique_ptr<KvmPciHost> pci_host_;
  std::unique_ptr<PciRoot> pci_root_;  // none where all devices are reached by MMIO
  std::vector<std::unique_ptr<VirtioSlot>> virtio_;
  std::size_t next_io_reactor_ = 0;
  std::size_t moving_ = 0;  // devices that do not stand still yet
  bool giving_up_ = false;
  Task* next_quiesce_ = nullptr;  // asked for meanwhile
  std::size_t changing_ = 0;      // disks with a change that is not done
  std::size_t flushing_ = 0;      // disks whose last flush is not done yet
  bool still_ = false;            // between quiesce() and resume()
  Task* quiesced_ = nullptr;
  std::size_t resuming_ = 0;  // devices that are not served again yet
  Task* resumed_ = nullptr;
  Bus ports_;
  Bus mmio_;
};

}  // namespace vireo
