// SPDX-License-Identifier: Apache-2.0
// How a machine is built, in the order of its boot, and sealed; one that was saved is in
// machine_restore.cc.
#include <algorithm>
#include <array>
#include <csignal>
#include <filesystem>
#include <span>
#include <utility>

#include <fcntl.h>
#include <malloc.h>

#include <fmt/core.h>

#include "boot/boot_params.h"
#include "devices/legacy/terminal.h"
#include "src/base/log.h"
#include "src/device_arguments.h"
#include "src/machine.h"
#include "src/memory/bus_error.h"
#include "src/uuid.h"

namespace vireo {

namespace {

/// io_uring operations that the program uses: the ring takes no others.
constexpr auto kOpcodes = std::to_array<std::uint8_t>(
    {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC,
     IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_ACCEPT, IORING_OP_RECVMSG,
     IORING_OP_TIMEOUT, IORING_OP_ASYNC_CANCEL});

BootConfig boot_config(const Config& all, std::span<const arch::MmioDevice> places) {
  const BootOptions& options = all.boot;
  BootConfig config;
  config.device_arguments = add_words(root_arguments(all), mmio_arguments(all, places));
  config.has_pci = over_pci(all);
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

}  // namespace

std::span<const std::uint8_t> ring_opcodes() {
  return kOpcodes;
}

Result<std::unique_ptr<Machine>> Machine::build(const Config& config, Timeline& timeline) {
  auto machine = std::unique_ptr<Machine>(new Machine(config, timeline));
  TRY(machine->limits_.apply(config.limits));
  TRY(machine->open_inputs());
  TRY(machine->create_vm(nullptr));
  TRY(machine->create_devices());
  TRY(machine->load_guest());
  TRY(machine->create_vcpus());
  TRY(machine->setup_vcpus());
  machine->keep_made_files();
  return machine;
}

void Machine::keep_made_files() {
  for (MadeFile& file : made_files_) {
    file.keep();
  }
}

/// What can be wrong with the operator's files is found before anything is made.
Result<> Machine::open_inputs() {
  // A machine that was saved has its kernel in memory; only a reboot takes it from its file again.
  if (!restored_ || config_.machine.on_reboot == OnReboot::kRestart) {
    TRY_ASSIGN(boot_, GuestBoot::open(boot_config(config_, mmio_places_)));
  }
  if (!config_.process.pid_file.empty()) {
    TRY(pid_file_.create(config_.process.pid_file));
  }
  auto allowed = AllowedPaths::open(config_.sandbox.allow_paths);
  if (!allowed) {
    return std::unexpected(std::move(allowed).error().context("sandbox.allow_paths"));
  }
  allowed_paths_ = std::move(*allowed);
  const auto open_report = [](std::optional<ReportFile>& file, const std::string& path,
                              std::string_view key) -> Result<> {
    if (!path.empty()) {
      TRY_ASSIGN(file, ReportFile::open(path, key));
    }
    return {};
  };
  TRY(open_report(timeline_file_, config_.process.timeline, "process.timeline"));
  TRY_ASSIGN(disks_, open_disks(config_));
  for (OpenDisk& disk : disks_) {
    made_files_.push_back(std::move(disk.made));
  }
  TRY(open_report(profile_file_, config_.process.profile, "process.profile"));
  TRY(open_report(working_set_file_, recorded_path_, "--working-set"));
  return open_report(metrics_file_, config_.metrics_path, "metrics.path");
}

Result<> Machine::create_vm(RestoreSource* source) {
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
  const RestoreSource* const known = standby_ ? &standby_->prepared.first : source;
  const bool maps = known != nullptr && known->memory == MemoryMode::kMap;
  TRY_ASSIGN(memory_, GuestMemory::create(ranges, {.huge_pages = config_.machine.huge_pages,
                                                   .mergeable = config_.machine.mergeable,
                                                   .prefault = config_.machine.prefault && !maps}));
  lost_page_ = lost_page_text(maps ? known->memory_path() : std::string());
  TRY(watch_bus_errors(*memory_, lost_page_, restore_terminal));
  if (!config_.control_path.empty()) {
    changes_ = std::make_unique<ChangeLog>(*vm_, *memory_);
    directory_ = std::filesystem::current_path();
  }
  if (!config_.control_path.empty() || working_set_file_) {
    pagemap_ = UniqueFd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  }
  if (source != nullptr) {
    if (Result<> read = read_memory(*source); !read) {
      return std::unexpected(std::move(read).error().context(source->path));
    }
  }
  // Slots first: once something listens on KVM's buses, a new slot waits for milliseconds.
  TRY(vm_->add_memory(*memory_));
  TRY(arch::create_interrupt_controllers(*vm_));
  timeline_.record(Step::kMemoryReady);
  return {};
}

Result<> Machine::create_devices() {
  TRY_ASSIGN(reactor_, Reactor::create({.allowed_opcodes = kOpcodes}));
  TRY_ASSIGN(io_threads_, IoThreads::create(config_.machine.io_threads, kOpcodes));
  if (!config_.control_path.empty()) {
    offload_ = std::make_unique<Offload>(Offload::Limits{.threads = MemorySave::kThreads});
  }
  signals_ = std::make_unique<SignalWatch>(*reactor_);
  TRY(signals_->open(kSignals));
  supervisor_ = std::make_unique<Supervisor>(*reactor_);
  TRY(supervisor_->open(config_.process.notify));
  stop_timer_ = std::make_unique<Timer>(*reactor_);
  stop_timer_->bind<Machine, &Machine::give_up_waiting>(this);
  snapshot_timer_ = std::make_unique<Timer>(*reactor_);
  snapshot_timer_->bind<Machine, &Machine::on_snapshot_timeout>(this);
  ready_timer_ = std::make_unique<Timer>(*reactor_);
  ready_timer_->bind<Machine, &Machine::on_ready_timeout>(this);

  TRY_ASSIGN(devices_, DeviceSet::open(config_, {.vm = *vm_,
                                                 .memory = *memory_,
                                                 .reactor = *reactor_,
                                                 .io_reactors = io_threads_->reactors(),
                                                 .events = *this,
                                                 .console_listener = *this,
                                                 .timeline = timeline_}));
  SerialOutput* serial_output = &devices_->console();
  if (config_.ready.when == ReadyConfig::When::kSerial) {
    ReadyTextListener& listener = *this;
    ready_text_ = std::make_unique<ReadyText>(config_.ready.text, *serial_output, listener);
    serial_output = ready_text_.get();
  }
  if (!config_.process.profile.empty()) {
    profile_ = std::make_unique<Profile>(*memory_, *serial_output);
    serial_output = &profile_->serial_output();
  }
  if (counts_exits()) {
    TRY(vm_stats_.open(vm_->fd()));
    statm_ = UniqueFd(::open("/proc/self/statm", O_RDONLY | O_CLOEXEC));
  }
  TRY(devices_->create(config_, mmio_places_, std::move(disks_), *serial_output));
  timeline_.record(Step::kDevicesReady);
  return {};
}

/// Somebody can ask what exits cost.
bool Machine::counts_exits() const {
  return !config_.process.profile.empty() || !config_.control_path.empty() ||
         !config_.metrics_path.empty();
}

Result<> Machine::load_guest() {
  TRY_ASSIGN(const LoadReport report, boot_->load(*memory_, MemoryState::kZero));
  log_debug("boot",
            "kernel at {:#x}: prepared in {} us, populated in {}, read in {}, relocated in {}",
            report.kernel_address, report.prepare_ns / 1000, report.populate_ns / 1000,
            report.read_ns / 1000, report.relocate_ns / 1000);
  timeline_.record(Step::kKernelLoaded);
  return {};
}

Result<> Machine::create_vcpus() {
  const arch::CpuTopology topology = resolved_topology(config_.machine);
  for (unsigned index = 0; index < config_.machine.cpus; ++index) {
    cpu_ids_.push_back(arch::cpu_id(topology, index));
  }
  if (config_.machine.uuid) {
    uuid_ = *config_.machine.uuid;
  } else {
    TRY_ASSIGN(uuid_, random_uuid());
  }
  TRY(prepare_vcpu_signal());
  const VcpuContext context = {.ports = devices_->ports(),
                               .mmio = devices_->mmio(),
                               .observer = *this,
                               .phase = phase_,
                               .count_exits = counts_exits()};
  if (profile_) {
    TRY(arch::report_unknown_msrs(*vm_));
  }
  for (unsigned index = 0; index < config_.machine.cpus; ++index) {
    TRY_ASSIGN(std::unique_ptr<Vcpu> vcpu, Vcpu::create(*vm_, index, cpu_ids_[index], context));
    vcpu_fds_.push_back(vcpu->fd());
    vcpus_.push_back(std::move(vcpu));
  }
  return {};
}

/// The first instruction is the kernel's.
Result<> Machine::setup_vcpus() {
  TRY_ASSIGN(const EntryPoint entry, write_tables());
  TRY_ASSIGN(cpu_model_, arch::make_cpu_model(*vm_, cpu_config()));
  for (std::size_t index = 0; index < vcpus_.size(); ++index) {
    TRY(arch::setup_vcpu(vcpu_fds_[index], *cpu_model_, cpu_ids_[index]));
  }
  if (config_.machine.on_reboot == OnReboot::kRestart) {
    TRY_ASSIGN(reset_state_, arch::capture_reset_state(*vm_, vcpu_fds_));
  }
  return setup_boot_vcpu(entry);
}

arch::CpuConfig Machine::cpu_config() const {
  return {.count = config_.machine.cpus,
          .topology = resolved_topology(config_.machine),
          .features = config_.machine.cpu_features};
}

/// The tables that the guest finds in its memory; where it begins.
Result<EntryPoint> Machine::write_tables() {
  TRY_ASSIGN(const Uuid generation, random_uuid());
  TRY_ASSIGN(const GuestAddress rsdp,
             arch::write_platform_tables(*memory_, {.cpu_ids = cpu_ids_,
                                                    .mmio_devices = mmio_places_,
                                                    .pci = devices_->has_pci(),
                                                    .uuid = uuid_,
                                                    .generation_id = generation}));
  return boot_->write_boot_params(*memory_, rsdp);
}

Result<> Machine::setup_boot_vcpu(const EntryPoint& entry) {
  return arch::setup_boot_vcpu(
      vcpu_fds_.front(), *memory_,
      {.protocol = entry.protocol == BootProtocol::kLinux64 ? arch::BootProtocol::kLinux64
                                                            : arch::BootProtocol::kPvh,
       .address = entry.address,
       .parameters = entry.params});
}

SandboxPaths Machine::sandbox_paths(std::span<const int> further) const {
  SandboxPaths paths;
  for (const int directory : {pid_file_.directory(), devices_->console().socket_directory()}) {
    paths.add(paths.removal, directory);
  }
  for (const int directory : further) {
    paths.add(paths.removal, directory);
  }
  paths.add(paths.removal, limits_.directory());
  for (const std::optional<ReportFile>* file :
       {&timeline_file_, &profile_file_, &metrics_file_, &working_set_file_}) {
    if (*file) {
      paths.add(paths.writing, (*file)->directory());
    }
  }
  paths.add(paths.writing, log_directory());
  paths.opening = allowed_paths_.descriptors();
  return paths;
}

Result<> Machine::seal(std::span<const int> further_directories) {
  devices_->freeze();
  if (config_.machine.on_reboot != OnReboot::kRestart) {
    boot_.reset();
  }
  // What loading the kernel and filling its cache took would else stay on the heap, freed.
  ::malloc_trim(0);
  if (config_.sandbox.enabled) {
    TRY(enter_sandbox(sandbox_paths(further_directories)));
  }
  return reactor_->start();
}

}  // namespace vireo
