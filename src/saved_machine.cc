// SPDX-License-Identifier: Apache-2.0
#include "src/saved_machine.h"

#include <utility>

#include <fmt/core.h>

#include "arch/arch.h"
#include "src/base/fd_path.h"

namespace vireo {

namespace {

void make_absolute(std::string& path, const std::string& directory) {
  path = absolute_in(directory, path);
}

/// What whoever runs the VM decides, each time anew: not even a file that somebody has changed may
/// have a say in it.
void forget_process(Config& config) {
  config.ready = {};
  config.process = {.boot_timer = config.process.boot_timer};  // a device
  config.log = {};
  config.sandbox = {};
  config.limits = {};
  config.control_path.clear();
  config.metrics_path.clear();
}

}  // namespace

std::string absolute_in(const std::string& directory, const std::string& path) {
  return path.empty() || path.starts_with('/') || is_inherited(path)
             ? path
             : fmt::format("{}/{}", directory, path);
}

SavedMachine save_machine(const Config& config, const std::string& directory,
                          std::span<const GuestMemory::Region> regions) {
  Config saved = config;
  forget_process(saved);
  // Which it is may not depend on what a later version finds best.
  saved.machine.transport = over_pci(config) ? Transport::kPci : Transport::kMmio;
  make_absolute(saved.boot.kernel, directory);
  make_absolute(saved.boot.initramfs, directory);
  if (saved.boot.cache != "auto" && saved.boot.cache != "off") {
    make_absolute(saved.boot.cache, directory);
  }
  make_absolute(saved.serial.path, directory);
  if (saved.serial.mode == SerialMode::kFile) {
    saved.serial.append = true;  // what the guest has said before stays
  }
  for (DiskConfig& disk : saved.disks) {
    make_absolute(disk.path, directory);
    make_absolute(disk.overlay, directory);
  }
  for (VolumeConfig& volume : saved.volumes) {
    make_absolute(volume.path, directory);
  }
  if (saved.cloud_init) {
    make_absolute(saved.cloud_init->seed, directory);
  }
  SavedMachine machine = {
      .config = to_toml(saved), .regions = {}, .generation_id = arch::generation_id_address()};
  for (const GuestMemory::Region& region : regions) {
    machine.regions.push_back({.address = region.range.start(), .bytes = region.range.size()});
  }
  return machine;
}

Result<Config> config_of(const SavedMachine& machine) {
  Config config;
  if (Result<> read = read_config_text(machine.config, "its configuration", config); !read) {
    return fail(ErrorCode::kBadInput, read.error().message());
  }
  forget_process(config);
  return config;
}

Result<> check_memory_map(const SavedMachine& machine, const Config& config) {
  const std::vector<GuestRange> ranges = arch::ram_ranges(config.machine.memory_bytes);
  bool same = ranges.size() == machine.regions.size();
  for (std::size_t i = 0; same && i < ranges.size(); ++i) {
    same = ranges[i].start() == machine.regions[i].address &&
           ranges[i].size() == machine.regions[i].bytes;
  }
  return same ? Result<>()
              : Result<>(bad_section<SavedMachine>(
                    0, "has another memory map than machine.memory makes here"));
}

}  // namespace vireo
