// SPDX-License-Identifier: Apache-2.0
#include "src/device_arguments.h"

#include <algorithm>

#include <fmt/core.h>

#include "arch/x86_64/layout.h"

namespace vireo {

std::string virtio_disk_name(std::size_t place) {
  constexpr std::size_t kLetters = 26;
  std::string letters;
  // Digits without a zero: behind z comes aa.
  for (std::size_t rest = place + 1; rest > 0; rest = (rest - 1) / kLetters) {
    letters.insert(letters.begin(), static_cast<char>('a' + (rest - 1) % kLetters));
  }
  return "vd" + letters;
}

std::string root_arguments(const Config& config) {
  const auto root = std::ranges::find_if(config.disks, &DiskConfig::root);
  if (root == config.disks.end()) {
    return {};
  }
  const auto place = static_cast<std::size_t>(root - config.disks.begin());
  const std::string device =
      root->partuuid.empty() ? "/dev/" + virtio_disk_name(place) : "PARTUUID=" + root->partuuid;
  return fmt::format("root={} {}", device, root->readonly ? "ro" : "rw");
}

std::vector<arch::MmioDevice> mmio_places(const Config& config) {
  std::vector<arch::MmioDevice> places;
  if (!over_pci(config)) {
    for (std::size_t number = 0; number < virtio_device_count(config); ++number) {
      places.push_back({.address = layout::virtio_mmio_window(number),
                        .size = layout::kVirtioMmioSize,
                        .gsi = layout::device_gsi(number)});
    }
  }
  return places;
}

std::string mmio_arguments(const Config& config, std::span<const arch::MmioDevice> places) {
  std::string words;
  if (!has_acpi(config)) {
    for (const arch::MmioDevice& place : places) {
      words += fmt::format("{}virtio_mmio.device={}K@{:#x}:{}", words.empty() ? "" : " ",
                           place.size / 1024, place.address.value(), place.gsi);
    }
  }
  return words;
}

}  // namespace vireo
