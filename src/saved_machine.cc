// SPDX-License-Identifier: Apache-2.0
#include "src/saved_machine.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>

#include "arch/x86_64/layout.h"
#include "src/base/fd_path.h"
#include "src/device_arguments.h"

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
                          std::span<const GuestMemory::Region> regions,
                          std::span<const arch::MmioDevice> places) {
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
  SavedMachine machine = {.config = to_toml(saved),
                          .regions = {},
                          .generation_id = arch::generation_id_address(),
                          .mmio_places = {},
                          .pci_windows = layout::kPciMmio32,
                          .pci_config = layout::kPciEcam};
  for (const GuestMemory::Region& region : regions) {
    machine.regions.push_back({.address = region.range.start(), .bytes = region.range.size()});
  }
  for (const arch::MmioDevice& place : places) {
    machine.mmio_places.push_back({.address = place.address, .gsi = place.gsi});
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

namespace {

/// A window of its own where such windows may be, and a line that nothing else has.
bool is_place(const SavedMachine::Place& place) {
  const std::uint64_t address = place.address.value();
  return address >= layout::kVirtioMmio.value() &&
         address <= layout::kPciMmio32.value() - layout::kVirtioMmioSize &&
         address % layout::kVirtioMmioSize == 0 && place.gsi >= layout::kFirstDeviceGsi &&
         place.gsi <= layout::kLastGsi && place.gsi != layout::kGedGsi;
}

bool overlap(const arch::MmioDevice& one, const arch::MmioDevice& other) {
  return one.address == other.address || one.gsi == other.gsi;
}

}  // namespace

Result<std::vector<arch::MmioDevice>> places_of(const SavedMachine& machine, const Config& config) {
  if (over_pci(config) && machine.pci_windows != GuestAddress() &&
      (machine.pci_windows != layout::kPciMmio32 || machine.pci_config != layout::kPciEcam)) {
    return bad_section<SavedMachine>(0, "has its PCI bus where this version cannot have one");
  }
  std::vector<arch::MmioDevice> places = mmio_places(config);
  if (machine.mmio_places.empty()) {
    return places;
  }
  if (machine.mmio_places.size() != places.size()) {
    return bad_section<SavedMachine>(0, "has places for another number of devices");
  }
  for (std::size_t i = 0; i < places.size(); ++i) {
    const SavedMachine::Place& place = machine.mmio_places[i];
    places[i].address = place.address;
    places[i].gsi = place.gsi;
    const auto before = std::span(places).first(i);
    if (!is_place(place) || std::ranges::any_of(before, [&](const arch::MmioDevice& other) {
          return overlap(places[i], other);
        })) {
      return bad_section<SavedMachine>(0, fmt::format("has device {} where none can be", i));
    }
  }
  return places;
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
