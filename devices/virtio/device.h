// SPDX-License-Identifier: Apache-2.0
// What a virtio device is to its transport (virtio 1.2 §2): what it offers, and what serves its
// queues. The status machine, features, queues and the configuration space are the transport's.
//
//      create ──▶ idle ──activate()──▶ active ──reset()──▶ idle
//                                        │  ▲
//                        handlers stop() ▼  │ start(): as a pause or a snapshot wants it
//                                       quiet
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "devices/virtio/queue_handler.h"

namespace vireo {

class VirtioDevice {
 public:
  virtual ~VirtioDevice() = default;

  /// VIRTIO_ID_…
  virtual std::uint32_t type() const = 0;
  /// What it offers of its own; the transport adds what concerns rings.
  virtual std::uint64_t features() const = 0;
  /// One for each queue: the most descriptors that it may have.
  virtual std::span<const std::uint16_t> queue_max_sizes() const = 0;
  /// Serves queue `index`; owned by the device.
  virtual QueueHandler& queue_handler(unsigned index) = 0;
  /// The configuration space as the driver first finds it; later images go to VirtioHost.
  virtual std::span<const std::byte> config() const { return {}; }

  /// The driver has accepted `features` and is about to use its queues. While no handler runs.
  virtual void activate(std::uint64_t features) = 0;
  /// The driver has reset the device. While no handler runs.
  virtual void reset() = 0;
};

}  // namespace vireo
