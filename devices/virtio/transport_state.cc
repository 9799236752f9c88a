// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/transport_state.h"

namespace vireo {

bool has_possible_status(const VirtioState& state) {
  constexpr std::uint8_t kAll = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                                VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FEATURES_OK |
                                VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
  const auto has = [&state](unsigned bit) { return (state.status & bit) != 0; };
  const bool agreed = (state.driver_features & ~state.device_features) == 0 &&
                      (state.driver_features & feature_bit(VIRTIO_F_VERSION_1)) != 0;
  // Set up in vain, it asks to be reset and was never active.
  return (state.status & ~kAll) == 0 && (!has(VIRTIO_CONFIG_S_FEATURES_OK) || agreed) &&
         (!has(VIRTIO_CONFIG_S_DRIVER_OK) || has(VIRTIO_CONFIG_S_FEATURES_OK)) &&
         (!has(VIRTIO_CONFIG_S_NEEDS_RESET) || has(VIRTIO_CONFIG_S_DRIVER_OK)) &&
         (state.active ? has(VIRTIO_CONFIG_S_DRIVER_OK)
                       : !has(VIRTIO_CONFIG_S_DRIVER_OK) || has(VIRTIO_CONFIG_S_NEEDS_RESET));
}

}  // namespace vireo
