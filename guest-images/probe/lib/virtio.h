// SPDX-License-Identifier: Apache-2.0
// A virtio driver (virtio 1.2): devices over MMIO and PCI, and split rings.
//
//   struct virtio_device device;
//   if (!virtio_find(VIRTIO_BLOCK, 0, &device)) …
//   virtio_negotiate(&device, VIRTIO_F_EVENT_IDX | …);   // what both have: device.features
//   virtqueue_create(&device, 0, &queue);                // its descriptors are the user's to write
//   virtio_driver_ok(&device);
//   virtqueue_put(&queue, head); virtqueue_publish(&queue);
//   while (!virtqueue_take(&queue, &head)) { relax(); }
#ifndef VIREO_PROBE_VIRTIO_H
#define VIREO_PROBE_VIRTIO_H

#include "probe.h"

#define VIRTIO_BLOCK 2  // §5

// Features that are the ring's (§6).
#define VIRTIO_F_INDIRECT_DESC ((uint64_t)1 << 28)
#define VIRTIO_F_EVENT_IDX ((uint64_t)1 << 29)
#define VIRTIO_F_VERSION_1 ((uint64_t)1 << 32)

// §2.1
#define VIRTIO_ACKNOWLEDGE 1
#define VIRTIO_DRIVER 2
#define VIRTIO_DRIVER_OK 4
#define VIRTIO_FEATURES_OK 8
#define VIRTIO_NEEDS_RESET 64

#define VIRTQ_DESC_NEXT 1
#define VIRTQ_DESC_WRITE 2
#define VIRTQ_DESC_INDIRECT 4

struct virtq_desc {
  uint64_t address;
  uint32_t size;
  uint16_t flags;
  uint16_t next;
};

struct virtq_avail {
  uint16_t flags;
  uint16_t index;
  uint16_t ring[];
};

struct virtq_used {
  uint16_t flags;
  uint16_t index;
  struct {
    uint32_t head;
    uint32_t written;
  } ring[];
};

struct virtqueue {
  uint16_t number;
  uint16_t size;
  bool event_index;
  struct virtq_desc* descriptors;
  volatile struct virtq_avail* available;
  volatile struct virtq_used* used;
  uint16_t put;        // index behind the last chain that was put into the ring
  uint16_t published;  // the same as the device knows it
  uint16_t taken;      // used chains that were taken
  uint64_t doorbell;
  bool narrow_doorbell;  // 16 bits
  uint64_t notifications;
};

struct virtio_device;

// What differs between MMIO and PCI.
struct virtio_transport {
  const char* name;
  uint64_t (*offered)(const struct virtio_device* device);
  void (*accept)(const struct virtio_device* device, uint64_t features);
  uint8_t (*status)(const struct virtio_device* device);
  void (*set_status)(const struct virtio_device* device, uint8_t status);
  uint16_t (*queue_size_max)(const struct virtio_device* device, uint16_t number);
  // Tells where the queue is, enables it, and fills in its doorbell.
  void (*enable_queue)(const struct virtio_device* device, struct virtqueue* queue);
  // Before the queues: their interrupts come as irq_vector(irq).
  void (*route_interrupts)(struct virtio_device* device, unsigned irq);
  void (*acknowledge)(const struct virtio_device* device);
};

struct virtio_device {
  const struct virtio_transport* transport;
  uint64_t features;  // negotiated
  uint64_t registers;
  uint64_t config;
  unsigned gsi;  // MMIO
  // PCI
  uint64_t function;
  uint64_t notify;
  uint32_t notify_step;
  uint16_t queue_message;
};

// The device with this index among those of its kind: first those that words
// virtio_mmio.device=SIZE@ADDRESS:GSI name, then those on PCI.
bool virtio_find(uint32_t kind, unsigned index, struct virtio_device* device);
// Its two halves.
bool virtio_mmio_find(uint32_t kind, unsigned* index, struct virtio_device* device);
bool virtio_pci_find(uint32_t kind, unsigned* index, struct virtio_device* device);

// Resets the device, and accepts what it offers of `wanted`. VERSION_1 must be there.
void virtio_negotiate(struct virtio_device* device, uint64_t wanted);
void virtqueue_create(const struct virtio_device* device, uint16_t number, uint16_t size_max,
                      struct virtqueue* queue);
void virtio_driver_ok(const struct virtio_device* device);
void virtio_reset(const struct virtio_device* device);

// Puts a chain into the available ring; the device sees it when it is published.
static inline void virtqueue_put(struct virtqueue* queue, uint16_t head) {
  queue->available->ring[queue->put & (queue->size - 1)] = head;
  ++queue->put;
}
// Rings the doorbell only where the device wants to hear it.
void virtqueue_publish(struct virtqueue* queue);
static inline bool virtqueue_has_used(const struct virtqueue* queue) {
  return queue->used->index != queue->taken;
}
// The head of the next used chain.
static inline bool virtqueue_take(struct virtqueue* queue, uint32_t* head) {
  if (!virtqueue_has_used(queue)) {
    return false;
  }
  __asm__ volatile("" : : : "memory");  // loads stay in order on x86
  *head = queue->used->ring[queue->taken & (queue->size - 1)].head;
  ++queue->taken;
  return true;
}
// The device shall interrupt at the next used chain, or (polling) at none. To be said again after
// chains were taken; with interrupts, look whether more has come since.
void virtqueue_want_interrupt(struct virtqueue* queue, bool wanted);

#endif
