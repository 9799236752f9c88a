// SPDX-License-Identifier: Apache-2.0
// How a machine that was saved is built, and goes on.
#include <memory>
#include <span>
#include <utility>

#include "src/machine.h"
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
  TRY(machine->limits_.apply(config.limits));
  TRY(machine->open_inputs());
  if (Result<> same = machine->check_disks_of(source); !same) {
    return std::unexpected(std::move(same).error().context(source.path));
  }
  TRY(machine->create_vm(&source));
  TRY(machine->create_devices());
  TRY(machine->create_vcpus());
  if (Result<> restored = machine->restore_state(source); !restored) {
    return std::unexpected(std::move(restored).error().context(source.path));
  }
  machine->keep_made_files();
  if (machine->feeder_) {
    machine->feeder_->stop();
  }
  return machine;
}

Result<> Machine::check_disks_of(const RestoreSource& source) const {
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(source.snapshot.sections()));
  TRY_ASSIGN(const SavedDisks saved, reader.take<SavedDisks>(0));
  return check_disks(saved, disks_, source.accepted_disks);
}

/// All as it was when the machine was saved: KVM's state before that of the devices, which may
/// interrupt.
Result<> Machine::restore_state(RestoreSource& source) {
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(source.snapshot.sections()));
  TRY_ASSIGN(const SavedMachine machine, reader.take<SavedMachine>(0));
  TRY(reader.take<SavedDisks>(0));
  TRY_ASSIGN(cpu_model_, arch::restore_cpu_model(*vm_, cpu_config(), reader));
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
    memory_file_ = std::move(source.file);
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
