// SPDX-License-Identifier: Apache-2.0
// Initialisation (virtio 1.2 §3.1) and the split ring's driver side (§2.7).
#include "virtio.h"

#define AVAIL_NO_INTERRUPT 1
#define USED_NO_NOTIFY 1

#define DESCRIPTORS_ALIGNMENT 16
#define PAGE 4096

static _Noreturn void give_up(const char* why) {
  print("probe: virtio: ");
  print(why);
  print("\n");
  end_panic();
}

bool virtio_find(uint32_t kind, unsigned index, struct virtio_device* device) {
  return virtio_mmio_find(kind, &index, device) || virtio_pci_find(kind, &index, device);
}

void virtio_reset(const struct virtio_device* device) {
  device->transport->set_status(device, 0);
  while (device->transport->status(device) != 0) {
    relax();
  }
}

void virtio_negotiate(struct virtio_device* device, uint64_t wanted) {
  const struct virtio_transport* transport = device->transport;
  virtio_reset(device);
  transport->set_status(device, VIRTIO_ACKNOWLEDGE);
  transport->set_status(device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
  uint64_t offered = transport->offered(device);
  if ((offered & VIRTIO_F_VERSION_1) == 0) {
    give_up("the device is a legacy one");
  }
  device->features = offered & (wanted | VIRTIO_F_VERSION_1);
  transport->accept(device, device->features);
  uint8_t status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK;
  transport->set_status(device, status);
  if ((transport->status(device) & VIRTIO_FEATURES_OK) == 0) {
    give_up("the device does not agree to the features");
  }
}

void virtio_driver_ok(const struct virtio_device* device) {
  uint8_t status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK;
  device->transport->set_status(device, status);
  if ((device->transport->status(device) & VIRTIO_NEEDS_RESET) != 0) {
    give_up("the device needs a reset");
  }
}

void virtqueue_create(const struct virtio_device* device, uint16_t number, uint16_t size_max,
                      struct virtqueue* queue) {
  uint16_t size = device->transport->queue_size_max(device, number);
  if (size == 0) {
    give_up("the queue is not there");
  }
  while (size > size_max || (size & (size - 1)) != 0) {
    size = size > size_max ? size / 2 : size & (size - 1);
  }
  memset(queue, 0, sizeof(*queue));
  queue->number = number;
  queue->size = size;
  queue->event_index = (device->features & VIRTIO_F_EVENT_IDX) != 0;
  size_t descriptors = size * sizeof(struct virtq_desc);
  size_t available = sizeof(struct virtq_avail) + size * sizeof(uint16_t) + sizeof(uint16_t);
  size_t used = sizeof(struct virtq_used) + size * (2 * sizeof(uint32_t)) + sizeof(uint16_t);
  queue->descriptors = memset(allocate(descriptors, DESCRIPTORS_ALIGNMENT), 0, descriptors);
  // Pages of their own: what the two sides write shall not share cache lines.
  queue->available = memset(allocate(available, PAGE), 0, available);
  queue->used = memset(allocate(used, PAGE), 0, used);
  device->transport->enable_queue(device, queue);
}

static bool wants_notification(const struct virtqueue* queue) {
  if (!queue->event_index) {
    return (queue->used->flags & USED_NO_NOTIFY) == 0;
  }
  // §2.7.10: avail_event lies behind the used ring.
  uint16_t event = *(const volatile uint16_t*)&queue->used->ring[queue->size];
  return (uint16_t)(queue->put - event - 1) < (uint16_t)(queue->put - queue->published);
}

void virtqueue_publish(struct virtqueue* queue) {
  if (queue->put == queue->published) {
    return;
  }
  __asm__ volatile("" : : : "memory");  // stores stay in order on x86
  queue->available->index = queue->put;
  __asm__ volatile("lock; addl $0, (%%rsp)" : : : "memory", "cc");  // but not before later loads
  if (wants_notification(queue)) {
    ++queue->notifications;
    if (queue->narrow_doorbell) {
      mmio_write16(queue->doorbell, queue->number);
    } else {
      mmio_write32(queue->doorbell, queue->number);
    }
  }
  queue->published = queue->put;
}

void virtqueue_want_interrupt(struct virtqueue* queue, bool wanted) {
  if (queue->event_index) {
    // used_event lies behind the available ring. One that is just behind the device is not crossed
    // before 65535 more chains were used.
    queue->available->ring[queue->size] = wanted ? queue->taken : queue->taken - 1;
  } else {
    queue->available->flags = wanted ? 0 : AVAIL_NO_INTERRUPT;
  }
  if (wanted) {
    __asm__ volatile("lock; addl $0, (%%rsp)" : : : "memory", "cc");
  }
}
