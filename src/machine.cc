// SPDX-License-Identifier: Apache-2.0
#include "src/machine.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <ctime>
#include <span>
#include <utility>

#include <malloc.h>
#include <sys/random.h>

#include <fmt/core.h>

#include "arch/x86_64/layout.h"
#include "devices/legacy/terminal.h"
#include "src/base/log.h"
#include "src/memory/bus_error.h"

namespace vireo {

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
/// How long a guest may take to shut down after its power button was pressed.
constexpr std::uint64_t kStopTimeoutNs = 10 * kSecond;
/// How long the end waits for a console reader that has stopped.
constexpr std::uint64_t kConsoleTimeoutNs = kSecond;

// Exit statuses, as README has them; those of errors are in main.
constexpr int kExitOk = 0;
constexpr int kExitReboot = 10;
constexpr int kExitPanic = 11;
constexpr int kExitCrash = 12;
constexpr int kExitSystem = 71;

constexpr std::array kSignals = {SIGTERM, SIGINT, SIGHUP, SIGCONT};

/// io_uring operations that the program uses: the ring takes no others.
constexpr std::array<std::uint8_t, 6> kOpcodes = {IORING_OP_READ,     IORING_OP_WRITE,
                                                  IORING_OP_POLL_ADD, IORING_OP_ACCEPT,
                                                  IORING_OP_TIMEOUT,  IORING_OP_ASYNC_CANCEL};

std::time_t wall_time() {
  return std::time(nullptr);
}

BootConfig boot_config(const BootOptions& options) {
  BootConfig config;
  config.kernel_path = options.kernel;
  config.initramfs_path = options.initramfs;
  config.cmdline = options.cmdline;
  config.append = options.append;
  config.unpack = options.unpack;
  config.kaslr = options.kaslr;
  if (options.cache == "off") {
    config.cache = CacheMode::kOff;
  } else if (options.cache != "auto") {
    config.cache = CacheMode::kDirectory;
    config.cache_directory = options.cache;
  }
  return config;
}

/// A version 4 UUID (RFC 4122 §4.4).
Result<std::array<std::uint8_t, 16>> random_uuid() {
  std::array<std::uint8_t, 16> uuid = {};
  if (::getrandom(uuid.data(), uuid.size(), 0) != static_cast<ssize_t>(uuid.size())) {
    return fail_errno(errno, "getrandom");
  }
  uuid[6] = static_cast<std::uint8_t>((uuid[6] & 0x0f) | 0x40);
  uuid[8] = static_cast<std::uint8_t>((uuid[8] & 0x3f) | 0x80);
  return uuid;
}

}  // namespace

Result<std::unique_ptr<Machine>> Machine::build(const Config& config, Timeline& timeline) {
  auto machine = std::unique_ptr<Machine>(new Machine(config, timeline));
  TRY(machine->open_inputs());
  TRY(machine->create_vm());
  TRY(machine->create_devices());
  TRY(machine->load_guest());
  TRY(machine->create_vcpus());
  TRY(machine->seal());
  return machine;
}

/// What can be wrong with the operator's files is found before anything is made.
Result<> Machine::open_inputs() {
  TRY_ASSIGN(boot_, GuestBoot::open(boot_config(config_.boot)));
  if (!config_.process.pid_file.empty()) {
    TRY(pid_file_.create(config_.process.pid_file));
  }
  if (const std::string& path = config_.process.timeline; !path.empty()) {
    TRY_ASSIGN(timeline_file_, ReportFile::open(path, "process.timeline"));
  }
  if (const std::string& path = config_.process.profile; !path.empty()) {
    TRY_ASSIGN(profile_file_, ReportFile::open(path, "process.profile"));
  }
  return {};
}

Result<> Machine::create_vm() {
  TRY_ASSIGN(vm_, KvmVm::create("/dev/kvm", arch::required_capabilities()));
  timeline_.record(Step::kKvmReady);

  const std::vector<GuestRange> ranges = arch::ram_ranges(config_.machine.memory_bytes);
  // Any processor has 36 bits; only beyond them the question is worth its cost.
  constexpr GuestAddress kAlwaysAddressable(std::uint64_t{1} << 36);
  if (ranges.back().end() > kAlwaysAddressable) {
    TRY_ASSIGN(const unsigned bits, arch::physical_address_bits(*vm_));
    if (bits < 64 && ranges.back().end().value() > std::uint64_t{1} << bits) {
      return fail(ErrorCode::kConfig,
                  fmt::format("machine.memory: {} end beyond this host's {} physical address bits",
                              format_size(config_.machine.memory_bytes), bits));
    }
  }
  TRY_ASSIGN(memory_, GuestMemory::create(ranges, {.huge_pages = config_.machine.huge_pages,
                                                   .mergeable = config_.machine.mergeable,
                                                   .prefault = config_.machine.prefault}));
  TRY(watch_bus_errors(*memory_, restore_terminal));
  // Slots first: once something listens on KVM's buses, a new slot waits for milliseconds.
  TRY(vm_->add_memory(*memory_));
  TRY(arch::create_interrupt_controllers(*vm_));
  timeline_.record(Step::kMemoryReady);
  return {};
}

Result<> Machine::create_devices() {
  TRY_ASSIGN(reactor_, Reactor::create({.allowed_opcodes = kOpcodes}));
  signals_ = std::make_unique<SignalWatch>(*reactor_);
  TRY(signals_->open(kSignals));
  stop_timer_ = std::make_unique<Timer>(*reactor_);
  stop_timer_->bind<Machine, &Machine::give_up_waiting>(this);

  serial_line_ = vm_->create_line_interrupt(layout::kCom1Gsi);
  keyboard_line_ = vm_->create_line_interrupt(layout::kKeyboardGsi);
  event_line_ = vm_->create_line_interrupt(layout::kGedGsi);

  // The devices' view of this machine; nobody else has it.
  MachineEvents& events = *this;
  ConsoleListener& listener = *this;
  console_ = std::make_unique<Console>(*reactor_, listener);
  TRY(console_->open(config_.serial));
  if (!console_->pty_name().empty()) {
    log_info("serial", "the console is {}", console_->pty_name());
  }
  SerialOutput* serial_output = console_.get();
  if (!config_.process.profile.empty()) {
    profile_ = std::make_unique<Profile>(*memory_, *console_);
    TRY(profile_->open(*vm_));
    serial_output = &profile_->serial_output();
  }
  serial_ = std::make_unique<Serial16550>(*serial_line_, *serial_output);
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
  if (config_.process.boot_timer) {
    boot_timer_ = std::make_unique<BootTimer>(timeline_.start_ns(), timeline_.start_cpu_ns());
    mmio_.add(layout::kBootTimer.value(), layout::kBootTimerSize, *boot_timer_, "boot-timer");
  }
  timeline_.record(Step::kDevicesReady);
  return {};
}

Result<> Machine::load_guest() {
  const MemoryState state = MemoryState::kZero;
  TRY_ASSIGN(const LoadReport report, boot_->load(*memory_, state));
  log_debug("boot",
            "kernel at {:#x}: prepared in {} us, populated in {}, read in {}, relocated in {}",
            report.kernel_address, report.prepare_ns / 1000, report.populate_ns / 1000,
            report.read_ns / 1000, report.relocate_ns / 1000);
  timeline_.record(Step::kKernelLoaded);
  return {};
}

Result<> Machine::create_vcpus() {
  const arch::CpuTopology topology = resolved_topology(config_.machine);
  std::vector<std::uint32_t> ids;
  ids.reserve(config_.machine.cpus);
  for (unsigned index = 0; index < config_.machine.cpus; ++index) {
    ids.push_back(arch::cpu_id(topology, index));
  }

  arch::PlatformConfig platform = {.cpu_ids = ids};
  if (config_.machine.uuid) {
    platform.uuid = *config_.machine.uuid;
  } else {
    TRY_ASSIGN(platform.uuid, random_uuid());
  }
  TRY_ASSIGN(const GuestAddress rsdp, arch::write_platform_tables(*memory_, platform));
  TRY_ASSIGN(const EntryPoint entry, boot_->write_boot_params(*memory_, rsdp));

  TRY_ASSIGN(const std::unique_ptr<arch::CpuModel> model,
             arch::make_cpu_model(*vm_, {.count = config_.machine.cpus,
                                         .topology = topology,
                                         .features = config_.machine.cpu_features}));
  TRY(prepare_vcpu_signal());
  const VcpuContext context = {.ports = ports_,
                               .mmio = mmio_,
                               .observer = *this,
                               .phase = phase_,
                               .profile = profile_ != nullptr};
  if (profile_) {
    TRY(arch::report_unknown_msrs(*vm_));
  }
  for (unsigned index = 0; index < config_.machine.cpus; ++index) {
    TRY_ASSIGN(std::unique_ptr<Vcpu> vcpu, Vcpu::create(*vm_, index, ids[index], context));
    TRY(arch::setup_vcpu(vcpu->fd(), *model, ids[index]));
    vcpus_.push_back(std::move(vcpu));
  }
  return arch::setup_boot_vcpu(
      vcpus_.front()->fd(), *memory_,
      {.protocol = entry.protocol == BootProtocol::kLinux64 ? arch::BootProtocol::kLinux64
                                                            : arch::BootProtocol::kPvh,
       .address = entry.address,
       .parameters = entry.params});
}

/// From here on nothing is opened and nothing executed: the buses are fixed, the inputs closed. The
/// sandbox has its place here.
Result<> Machine::seal() {
  ports_.freeze();
  mmio_.freeze();
  boot_.reset();
  // What loading the kernel and filling its cache took would else stay on the heap, freed.
  ::malloc_trim(0);
  return reactor_->start();
}

Machine::~Machine() {
  stop_vcpus();
  forget_bus_errors();
}

Result<int> Machine::run() {
  signals_->start<Machine, &Machine::on_signal>(this);
  console_->start(*serial_);
  for (const auto& vcpu : vcpus_) {
    TRY(vcpu->start());
  }
  for (const auto& vcpu : vcpus_) {
    vcpu->resume();
  }
  Result<> served = reactor_->run();
  stop_vcpus();
  signals_->stop();
  stop_timer_->cancel();
  console_->finish(kConsoleTimeoutNs);
  restore_terminal();
  timeline_.record(Step::kEnd);
  TRY(std::move(served));
  TRY(write_reports());
  return exit_status();
}

void Machine::stop_vcpus() {
  for (const auto& vcpu : vcpus_) {
    vcpu->stop();
  }
}

void Machine::on_signal(int signal) {
  switch (signal) {
    case SIGHUP:
      if (Result<> reopened = reopen_log(); !reopened) {
        log_warn("log", "{}", reopened.error().message());
      }
      break;
    case SIGCONT:
      renew_raw_terminal();
      break;
    default:
      request_power_off();
      break;
  }
}

/// The first request presses the guest's power button, a second one does not wait for it.
void Machine::request_power_off() {
  if (std::exchange(stop_requested_, true)) {
    log_warn("machine", "stopped by a second signal, without waiting for the guest");
    end(End::kStopped);
    return;
  }
  acpi_pm_->notify(layout::kGedPowerButton);
  stop_timer_->arm(kStopTimeoutNs);
}

void Machine::give_up_waiting() {
  log_warn("machine", "the guest did not shut down within {} s; stopped without it",
           kStopTimeoutNs / kSecond);
  end(End::kStopped);
}

void Machine::end(End how) {
  End none = End::kNone;
  if (end_.compare_exchange_strong(none, how)) {
    reactor_->stop();
  }
}

int Machine::exit_status() {
  switch (end_.load()) {
    case End::kNone:
    case End::kPowerOff:
    case End::kStopped:
      return kExitOk;
    case End::kReset:
      // A kernel without the pvpanic driver (any early panic) tells by its console, then resets.
      return console_->saw_panic() ? kExitPanic : kExitReboot;
    case End::kPanic:
      return kExitPanic;
    case End::kCrash:
      return kExitCrash;
    case End::kHostMemory:
      return kExitSystem;
  }
  std::unreachable();
}

void Machine::mark(std::uint8_t number) {
  timeline_.record_mark(number);
  if (profile_) {
    profile_->end_phase();
  }
  phase_.fetch_add(1, std::memory_order_relaxed);
}

void Machine::vcpu_first_entry(unsigned index) {
  if (index == 0) {
    timeline_.record(Step::kFirstEntry);
    timeline_.record(Step::kReady);  // ready.when = "started"
  }
}

void Machine::vcpu_ended(unsigned index, VcpuEnd how, const std::string& what) {
  log_error("kvm", "vCPU {}: {}", index, what);
  end(how == VcpuEnd::kHostMemory ? End::kHostMemory : End::kCrash);
}

Result<> Machine::write_reports() {
  if (timeline_file_) {
    TRY(timeline_file_->write(timeline_.to_json()));
  }
  if (profile_) {
    TRY_ASSIGN(const std::string profile, profile_->to_json(vcpus_, ports_, mmio_));
    TRY(profile_file_->write(profile));
  }
  return {};
}

}  // namespace vireo
