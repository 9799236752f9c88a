// SPDX-License-Identifier: Apache-2.0
// What a virtio device is to its transport (virtio 1.2 §2): what it offers, and what serves its
// queues. The status machine, features, queues and the configuration space are the transport's.
//
//      create ──▶ idle ──activate()──▶ active ──reset()──▶ idle
//                                        │  ▲
//                        handlers stop() ▼  │ start(): as a pause or a snapshot wants it
//                                       quiet
//
// A device of another process that is made in the same way goes on from where one was quiet:
// restore(), then activate() where that one was active.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "devices/virtio/queue_handler.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

/// Host memory that the driver maps (§2.10), for as long as the device is there: a power of two of
/// bytes, from a page on.
struct SharedMemoryRegion {
  std::uint8_t id = 0;
  std::span<std::byte> host;
};

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
  /// The configuration space as the driver finds it from create() or restore() on; later images go
  /// to VirtioHost.
  virtual std::span<const std::byte> config() const { return {}; }
  virtual std::optional<SharedMemoryRegion> shared_memory() const { return std::nullopt; }

  /// The driver has accepted `features` and is about to use its queues. While no handler runs.
  virtual void activate(std::uint64_t features) = 0;
  /// The driver has reset the device. While no handler runs.
  virtual void reset() = 0;

  /// What the transport does not know, in a section `index`. While no handler runs.
  virtual void save(SnapshotWriter& writer, unsigned index) = 0;
  /// As it was saved, to a driver that has read `config`, which is as long as config(). Where
  /// config() is another one thereafter, the driver is told. The section and `config` may be
  /// anybody's; an error leaves the device as it was.
  virtual Result<> restore(SnapshotReader& reader, unsigned index,
                           std::span<const std::byte> config) = 0;
};

}  // namespace vireo
