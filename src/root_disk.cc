// SPDX-License-Identifier: Apache-2.0
#include "src/root_disk.h"

#include <algorithm>

#include <fmt/core.h>

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

}  // namespace vireo
