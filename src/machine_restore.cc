// SPDX-License-Identifier: Apache-2.0
// How a machine that was saved is built, and goes on.
#include <memory>
#include <span>
#include <utility>

#include <fmt/core.h>

#include "devices/legacy/terminal.h"
#include "src/machine.h"
#include "src/memory/bus_error.h"
#include "src/memory/userfault.h"
#include "src/saved_disks.h"
#include "src/saved_machine.h"
#include "src/uuid.h"

namespace vireo {

namespace {

/// How long the devices may take to serve their queues again.
constexpr std::uint64_t kDevicesTimeoutNs = 30'000'000'000;

}  // namespace

Result<std::unique_ptr<Machine>> Machine::restore(const Config& config, RestoreSource source,
                                                  Timeline& timeline) {
  auto machine = std::unique_ptr<Machine>(new Machine(config, timeline));
  machine->restored_ = true;
  machine->mmio_places_ = source.mmio_places;
  machine->recorded_path_ = source.recorded_path;
  TRY(machine->limits_.apply(config.limits));
  TRY(machine->open_inputs());
  TRY(machine->check_disks_of(source, written_disks(machine->disks_)));
  TRY(machine->create_vm(&source));
  TRY(machine->create_devices());
  TRY(machine->create_vcpus());
  TRY_ASSIGN(machine->cpu_model_, arch::make_cpu_model(*machine->vm_, machine->cpu_config()));
  if (Result<> restored = machine->restore_state(source); !restored) {
    return std::unexpected(std::move(restored).error().context(source.path));
  }
  machine->keep_made_files();
  if (machine->feeder_) {
    machine->feeder_->stop();
  }
  return machine;
}

Result<std::unique_ptr<Machine>> Machine::stand_by(PreparedMachine prepared, Timeline& timeline) {
  auto machine = std::unique_ptr<Machine>(new Machine(prepared.config, timeline));
  machine->restored_ = true;
  machine->mmio_places_ = prepared.first.mmio_places;
  TRY(machine->limits_.apply(machine->config_.limits));
  TRY(machine->open_inputs());
  machine->standby_ = std::make_unique<Standby>();
  Standby& standby = *machine->standby_;
  standby.prepared = std::move(prepared);
  standby.disks = written_disks(machine->disks_);
  if (standby.prepared.first.memory == MemoryMode::kFill) {
    std::string way;
    standby.userfaultfd = open_userfaultfd(way);
  } else {
    standby.userfaultfd = fail(ErrorCode::kConfig, "the VM was prepared without --memory fill");
  }
  TRY(machine->create_vm(nullptr));
  TRY(machine->create_devices());
  TRY(machine->create_vcpus());
  TRY_ASSIGN(machine->cpu_model_, arch::make_cpu_model(*machine->vm_, machine->cpu_config()));
  machine->keep_made_files();
  return machine;
}

Result<> Machine::check_disks_of(const RestoreSource& source,
                                 std::span<const WrittenDisk> disks) const {
  const auto check = [&]() -> Result<> {
    TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(source.snapshot.sections()));
    TRY_ASSIGN(const SavedDisks saved, reader.take<SavedDisks>(0));
    return check_disks(saved, disks, source.accepted_disks);
  };
  Result<> same = check();
  return same ? same : std::unexpected(std::move(same).error().context(source.path));
}

/// The guest's processors have their threads, and nothing to do.
Result<> Machine::wait_for_load() {
  TRY(wait_for_vcpus());
  TRY(start_pool());
  if (const auto listener = std::exchange(start_listener_, nullptr)) {
    listener();
  }
  set_state(MachineState::kStandby);
  const auto over = [this] { return standby_->loaded || end_.load() != End::kNone; };
  if (!reactor_->run_until(over, Reactor::kNoLimit)) {
    return fail(ErrorCode::kInternal, "the reactor has ended");
  }
  standby_.reset();
  return {};
}

Result<> Machine::load(std::string path, UniqueFd file, LoadDone done) {
  if (!standby_ || standby_->loaded) {
    return fail(ErrorCode::kConfig, fmt::format("the VM is {}, and only one that stands by takes a "
                                                "snapshot (vireo restore --standby)",
                                                name_of(state_)));
  }
  timeline_.record(Step::kLoad);
  RestoreSource another;
  RestoreSource* source = &standby_->prepared.first;
  if (file) {
    TRY_ASSIGN(another, read_snapshot(std::move(path), std::move(file)));
    source = &another;
  }
  TRY_ASSIGN(const Config config, config_in_standby(*source, standby_->prepared));
  TRY(check_disks_of(*source, standby_->disks));
  // From here on there is no way back.
  standby_->loaded = true;
  config_.machine.uuid = config.machine.uuid;
  uuid_ = config.machine.uuid.value_or(uuid_);
  if (Result<> taken = take_over(*source); !taken) {
    Error error = std::move(taken).error().context(source->path);
    done(std::unexpected(error));
    failure_ = std::move(error);
    end(End::kFailed);
    return {};
  }
  load_done_ = std::move(done);
  return {};
}

/// Memory and state, while the vCPUs and queues stand still.
Result<> Machine::take_over(RestoreSource& source) {
  if (source.memory == MemoryMode::kMap) {
    lost_page_ = lost_page_text(source.memory_path());
    TRY(watch_bus_errors(*memory_, lost_page_, restore_terminal));
  }
  TRY(read_memory(source));
  TRY(restore_state(source));
  if (feeder_) {
    feeder_->stop();
    return start_feeder();
  }
  return {};
}

/// All as it was when the machine was saved: KVM's state before that of the devices, which may
/// interrupt.
Result<> Machine::restore_state(RestoreSource& source) {
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(source.snapshot.sections()));
  TRY_ASSIGN(const SavedMachine machine, reader.take<SavedMachine>(0));
  TRY(reader.take<SavedDisks>(0));
  if (source.snapshot.facts().memory_file) {
    TRY(reader.take<MemoryFileName>(0));
  }
  TRY_ASSIGN(cpu_model_, arch::restore_cpu_model(*cpu_model_, cpu_config(), reader));
  if (config_.machine.on_reboot == OnReboot::kRestart) {
    for (std::size_t index = 0; index < vcpus_.size(); ++index) {
      TRY(arch::setup_vcpu(vcpu_fds_[index], *cpu_model_, cpu_ids_[index]));
    }
    TRY_ASSIGN(reset_state_, arch::capture_reset_state(*vm_, vcpu_fds_));
  }
  TRY(arch::restore_kvm_machine(*vm_, reader));
  for (std::uint32_t index = 0; index < vcpus_.size(); ++index) {
    TRY(arch::restore_vcpu(*vm_, vcpu_fds_[index], *cpu_model_, cpu_ids_[index], index, reader));
  }
  TRY(devices_->restore(reader));
  // There may be several of it now: a guest reseeds its random numbers when it is told.
  TRY_ASSIGN(const Uuid generation, random_uuid());
  if (!memory_->write(machine.generation_id, std::as_bytes(std::span(generation)))) {
    return bad_section<SavedMachine>(0, "has its generation id outside memory");
  }
  devices_->tell_new_generation();
  TRY(reader.finish());
  if (source.memory == MemoryMode::kMap) {
    const MemoryPlace& place = source.snapshot.memory();
    memory_file_ = std::move(source.memory_fd());
    memory_file_bytes_ = place.offset + place.size;
    if (pagemap_) {
      mapped_from_ = source.snapshot.facts().uuid;
    }
  }
  return {};
}

/// The devices of a machine that was saved stand still: here they begin to serve their queues.
Result<> Machine::restore_devices() {
  devices_->resume(devices_resumed_task_);
  if (!reactor_->run_until([this] { return !restored_; }, kDevicesTimeoutNs)) {
    return fail(ErrorCode::kInternal, "the devices do not begin to serve");
  }
  return {};
}

}  // namespace vireo
