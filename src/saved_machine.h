// SPDX-License-Identifier: Apache-2.0
// What a snapshot has of a machine beside KVM's state and that of its devices: how it was
// configured, its memory map, and where its devices are.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arch/arch.h"
#include "src/base/address.h"
#include "src/base/error.h"
#include "src/config.h"
#include "src/memory/guest_memory.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

struct SavedMachine {
  static constexpr std::string_view kTag = "machine";
  static constexpr std::uint32_t kVersion = 2;
  static constexpr std::size_t kConfigMax = std::size_t{4} << 20;
  static constexpr std::size_t kRegionsMax = 64;
  static constexpr std::size_t kPlacesMax = 256;

  struct Region {
    GuestAddress address;
    std::uint64_t bytes = 0;
    void fields(auto& ar) { ar(address, bytes); }
  };

  /// A virtio-mmio device, as the guest was told where it is.
  struct Place {
    GuestAddress address;
    std::uint32_t gsi = 0;
    void fields(auto& ar) { ar(address, gsi); }
  };

  std::string config;  // TOML, as vireo.toml(5) has it
  std::vector<Region> regions;
  GuestAddress generation_id;  // where the guest finds it
  std::vector<Place> mmio_places;
  GuestAddress pci_windows;  // of a guest with PCI: its memory, …
  GuestAddress pci_config;   // … and its configuration space

  void fields(auto& ar) {
    ar.text(config, kConfigMax);
    ar.list(regions, kRegionsMax);
    ar(generation_id);
    if (ar.version() >= 2) {
      ar.list(mmio_places, kPlacesMax);
      ar(pci_windows, pci_config);
    }
  }
};

/// Relative paths begin at `directory`; what is no path stays.
std::string absolute_in(const std::string& directory, const std::string& path);

/// `config` as it goes into a snapshot: what belongs to the process alone is left out, relative
/// paths begin at `directory`.
SavedMachine save_machine(const Config& config, const std::string& directory,
                          std::span<const GuestMemory::Region> regions,
                          std::span<const arch::MmioDevice> places);

/// The configuration of a machine that was saved, of which nothing is opened. Errors: kBadInput.
Result<Config> config_of(const SavedMachine& machine);

/// Where its virtio-mmio devices are, of which `config` makes as many; the file of a version that
/// did not tell has them where mmio_places() has. Errors: kBadInput.
Result<std::vector<arch::MmioDevice>> places_of(const SavedMachine& machine, const Config& config);

/// Whether the machine that `config` makes has that memory map.
Result<> check_memory_map(const SavedMachine& machine, const Config& config);

}  // namespace vireo
