// SPDX-License-Identifier: Apache-2.0
// What a snapshot has of a virtio device that its transport knows: the sections of
// VirtioTransport, MmioTransport and PciTransport.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "devices/virtio/queue.h"
#include "devices/virtio/uapi.h"

namespace vireo {

/// What driver and device have agreed on, and how far their rings are.
struct VirtioState {
  static constexpr std::string_view kTag = "virtio";
  static constexpr std::uint32_t kVersion = 1;
  /// No transport has room for more of either.
  static constexpr std::size_t kQueuesMax = 1024;
  static constexpr std::size_t kConfigMax = 4096;

  struct Queue {
    QueueConfig config;
    QueueState state;  // of the live ring
    void fields(auto& ar) { ar(config, state); }
  };

  std::uint32_t device_type = 0;
  std::uint64_t device_features = 0;
  std::uint64_t driver_features = 0;
  std::uint8_t status = 0;
  bool active = false;  // the device serves its queues
  std::uint32_t config_generation = 0;
  std::vector<std::byte> config;
  std::vector<Queue> queues;

  void fields(auto& ar) {
    ar(device_type, device_features, driver_features, status, active, config_generation);
    ar.list(config, kConfigMax);
    ar.list(queues, kQueuesMax);
  }
};

/// Whether the status machine (virtio 1.2 §2.1, §3.1.1) can come to its status.
bool has_possible_status(const VirtioState& state);

/// What the driver has made of the registers that virtio-mmio alone has.
struct VirtioMmioState {
  static constexpr std::string_view kTag = "virtio-mmio";
  static constexpr std::uint32_t kVersion = 1;

  std::uint32_t device_features_page = 0;
  std::uint32_t driver_features_page = 0;
  std::uint32_t queue = 0;
  std::uint32_t shared_memory_id = 0;
  std::uint32_t interrupt_status = 0;

  void fields(auto& ar) {
    ar(device_features_page, driver_features_page, queue, shared_memory_id, interrupt_status);
  }
};

/// The same of virtio-pci.
struct VirtioPciState {
  static constexpr std::string_view kTag = "virtio-pci";
  static constexpr std::uint32_t kVersion = 1;

  struct Vector {
    std::uint16_t number = VIRTIO_MSI_NO_VECTOR;
    void fields(auto& ar) { ar(number); }
  };
  std::uint32_t device_features_page = 0;
  std::uint32_t driver_features_page = 0;
  std::uint16_t queue = 0;
  Vector config_vector;
  std::vector<Vector> queue_vectors;
  std::uint8_t isr = 0;

  void fields(auto& ar) {
    ar(device_features_page, driver_features_page, queue, config_vector, isr);
    ar.list(queue_vectors, VirtioState::kQueuesMax);
  }
};

}  // namespace vireo
