// SPDX-License-Identifier: Apache-2.0
// The virtual machine: owns all parts. Reading build() from top to bottom is the boot order.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arch/arch.h"
#include "boot/boot.h"
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
#include "src/io/signals.h"
#include "src/kvm/vcpu.h"
#include "src/kvm/vm.h"
#include "src/memory/guest_memory.h"
#include "src/pid_file.h"
#include "src/profile.h"
#include "src/report_file.h"
#include "src/timeline.h"

namespace vireo {

class Machine final : MachineEvents, VcpuObserver, ConsoleListener {
 public:
  /// Builds the whole machine, up to a guest that would run. `config` and `timeline` outlive it.
  /// Main thread, while it is the only one.
  static Result<std::unique_ptr<Machine>> build(const Config& config, Timeline& timeline);
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() override;

  /// Runs the guest until it ends, and returns the process's exit status.
  Result<int> run();

 private:
  /// How the machine ended; the first reason counts.
  enum class End : std::uint8_t {
    kNone,
    kPowerOff,
    kReset,
    kPanic,
    kCrash,
    kHostMemory,
    kStopped,
  };

  Machine(const Config& config, Timeline& timeline) : config_(config), timeline_(timeline) {}

  Result<> open_inputs();
  Result<> create_vm();
  Result<> create_devices();
  Result<> load_guest();
  Result<> create_vcpus();
  Result<> seal();

  void stop_vcpus();
  void on_signal(int signal);
  void request_power_off();
  void give_up_waiting();
  void end(End how);
  int exit_status();
  Result<> write_reports();

  // MachineEvents, on vCPU threads.
  void power_off() override { end(End::kPowerOff); }
  void reset() override { end(End::kReset); }
  void panicked() override { end(End::kPanic); }
  void mark(std::uint8_t number) override;
  // VcpuObserver, on vCPU threads.
  void vcpu_first_entry(unsigned index) override;
  void vcpu_ended(unsigned index, VcpuEnd how, const std::string& what) override;
  // ConsoleListener, on the reactor.
  void console_quit() override { end(End::kStopped); }

  const Config& config_;
  Timeline& timeline_;
  PidFile pid_file_;
  std::optional<ReportFile> timeline_file_;
  std::optional<ReportFile> profile_file_;
  std::atomic<End> end_ = End::kNone;
  std::atomic<std::uint32_t> phase_ = 0;  // guest marks so far
  bool stop_requested_ = false;

  // Destroyed from the last to the first: vCPU threads touch devices and memory, devices use the
  // reactor and KVM, KVM maps the memory.
  std::unique_ptr<GuestBoot> boot_;
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<KvmVm> vm_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<SignalWatch> signals_;
  std::unique_ptr<Timer> stop_timer_;
  std::unique_ptr<Interrupt> serial_line_;
  std::unique_ptr<Interrupt> keyboard_line_;
  std::unique_ptr<Interrupt> event_line_;
  std::unique_ptr<Console> console_;
  std::unique_ptr<Profile> profile_;  // none unless asked for
  std::unique_ptr<Serial16550> serial_;
  std::unique_ptr<I8042> i8042_;
  std::unique_ptr<Cmos> cmos_;
  std::unique_ptr<Pvpanic> pvpanic_;
  std::unique_ptr<MarkPort> mark_port_;
  std::unique_ptr<AcpiPm> acpi_pm_;
  std::unique_ptr<BootTimer> boot_timer_;
  Bus ports_;
  Bus mmio_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
};

}  // namespace vireo
