// SPDX-License-Identifier: Apache-2.0
// Virtio over MMIO (virtio 1.2 §4.2), at the addresses that the command line names.
#include "virtio.h"

#define MAGIC 0x74726976  // "virt"
#define VERSION 2

#define REG_MAGIC 0x000
#define REG_VERSION 0x004
#define REG_DEVICE_ID 0x008
#define REG_DEVICE_FEATURES 0x010
#define REG_DEVICE_FEATURES_SELECT 0x014
#define REG_DRIVER_FEATURES 0x020
#define REG_DRIVER_FEATURES_SELECT 0x024
#define REG_QUEUE_SELECT 0x030
#define REG_QUEUE_SIZE_MAX 0x034
#define REG_QUEUE_SIZE 0x038
#define REG_QUEUE_READY 0x044
#define REG_QUEUE_NOTIFY 0x050
#define REG_INTERRUPT_STATUS 0x060
#define REG_INTERRUPT_ACKNOWLEDGE 0x064
#define REG_STATUS 0x070
#define REG_QUEUE_DESCRIPTORS 0x080
#define REG_QUEUE_AVAILABLE 0x090
#define REG_QUEUE_USED 0x0a0
#define REG_CONFIG 0x100

static uint32_t get(const struct virtio_device* device, uint32_t reg) {
  return mmio_read32(device->registers + reg);
}

static void set(const struct virtio_device* device, uint32_t reg, uint32_t value) {
  mmio_write32(device->registers + reg, value);
}

static void set64(const struct virtio_device* device, uint32_t reg, uint64_t value) {
  set(device, reg, (uint32_t)value);
  set(device, reg + 4, (uint32_t)(value >> 32));
}

static uint64_t offered(const struct virtio_device* device) {
  set(device, REG_DEVICE_FEATURES_SELECT, 1);
  uint64_t high = get(device, REG_DEVICE_FEATURES);
  set(device, REG_DEVICE_FEATURES_SELECT, 0);
  return high << 32 | get(device, REG_DEVICE_FEATURES);
}

static void accept(const struct virtio_device* device, uint64_t features) {
  set(device, REG_DRIVER_FEATURES_SELECT, 0);
  set(device, REG_DRIVER_FEATURES, (uint32_t)features);
  set(device, REG_DRIVER_FEATURES_SELECT, 1);
  set(device, REG_DRIVER_FEATURES, (uint32_t)(features >> 32));
}

static uint8_t status(const struct virtio_device* device) {
  return (uint8_t)get(device, REG_STATUS);
}

static void set_status(const struct virtio_device* device, uint8_t value) {
  set(device, REG_STATUS, value);
}

static uint16_t queue_size_max(const struct virtio_device* device, uint16_t number) {
  set(device, REG_QUEUE_SELECT, number);
  return (uint16_t)get(device, REG_QUEUE_SIZE_MAX);
}

static void enable_queue(const struct virtio_device* device, struct virtqueue* queue) {
  set(device, REG_QUEUE_SELECT, queue->number);
  set(device, REG_QUEUE_SIZE, queue->size);
  set64(device, REG_QUEUE_DESCRIPTORS, (uint64_t)queue->descriptors);
  set64(device, REG_QUEUE_AVAILABLE, (uint64_t)queue->available);
  set64(device, REG_QUEUE_USED, (uint64_t)queue->used);
  set(device, REG_QUEUE_READY, 1);
  queue->doorbell = device->registers + REG_QUEUE_NOTIFY;
  queue->narrow_doorbell = false;
}

static void route_interrupts(struct virtio_device* device, unsigned irq) {
  route_gsi(device->gsi, irq);
}

static void acknowledge(const struct virtio_device* device) {
  set(device, REG_INTERRUPT_ACKNOWLEDGE, get(device, REG_INTERRUPT_STATUS));
}

static const struct virtio_transport mmio_transport = {
    .name = "mmio",
    .offered = offered,
    .accept = accept,
    .status = status,
    .set_status = set_status,
    .queue_size_max = queue_size_max,
    .enable_queue = enable_queue,
    .route_interrupts = route_interrupts,
    .acknowledge = acknowledge,
};

// What stands before `mark`, taken off the word; all of it where there is no mark.
static struct word take_until(struct word* word, char mark) {
  struct word piece = {word->text, 0};
  while (piece.size < word->size && piece.text[piece.size] != mark) {
    ++piece.size;
  }
  size_t taken = piece.size < word->size ? piece.size + 1 : piece.size;
  word->text += taken;
  word->size -= taken;
  return piece;
}

bool virtio_mmio_find(uint32_t kind, unsigned* index, struct virtio_device* device) {
  const char* rest = command_line;
  for (struct word word; next_word(&rest, &word);) {
    if (!strip_name(&word, "virtio_mmio.device")) {
      continue;
    }
    (void)take_until(&word, '@');
    struct word address = take_until(&word, ':');
    struct word gsi = take_until(&word, ':');
    uint64_t base;
    uint64_t line;
    if (!take_number(&address, &base) || !take_number(&gsi, &line)) {
      print("probe: virtio_mmio.device= takes SIZE@ADDRESS:GSI\n");
      end_panic();
    }
    if (mmio_read32(base + REG_MAGIC) != MAGIC || mmio_read32(base + REG_DEVICE_ID) != kind ||
        (*index)-- != 0) {
      continue;
    }
    if (mmio_read32(base + REG_VERSION) != VERSION) {
      print("probe: virtio: the device's registers are the legacy ones\n");
      end_panic();
    }
    *device = (struct virtio_device){.transport = &mmio_transport,
                                     .registers = base,
                                     .config = base + REG_CONFIG,
                                     .gsi = (unsigned)line};
    return true;
  }
  return false;
}
