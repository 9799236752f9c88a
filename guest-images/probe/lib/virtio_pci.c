// SPDX-License-Identifier: Apache-2.0
// Virtio over PCI (virtio 1.2 §4.1), by its modern structures only.
#include "pci.h"
#include "virtio.h"

#define VENDOR 0x1af4
#define MODERN_DEVICE 0x1040       // and the kind
#define TRANSITIONAL_BLOCK 0x1001  // the only transitional kind that the probe drives

// struct virtio_pci_cap
#define CAP_STRUCTURE 3
#define CAP_BAR 4
#define CAP_OFFSET 8
#define CAP_NOTIFY_STEP 16
#define STRUCTURE_COMMON 1
#define STRUCTURE_NOTIFY 2
#define STRUCTURE_DEVICE 4

// struct virtio_pci_common_cfg
#define REG_DEVICE_FEATURES_SELECT 0
#define REG_DEVICE_FEATURES 4
#define REG_DRIVER_FEATURES_SELECT 8
#define REG_DRIVER_FEATURES 12
#define REG_STATUS 20
#define REG_QUEUE_SELECT 22
#define REG_QUEUE_SIZE 24
#define REG_QUEUE_MESSAGE 26
#define REG_QUEUE_ENABLE 28
#define REG_QUEUE_NOTIFY_OFFSET 30
#define REG_QUEUE_DESCRIPTORS 32
#define REG_QUEUE_AVAILABLE 40
#define REG_QUEUE_USED 48
#define NO_MESSAGE 0xffff

static void set64(uint64_t address, uint64_t value) {
  mmio_write32(address, (uint32_t)value);
  mmio_write32(address + 4, (uint32_t)(value >> 32));
}

static uint64_t offered(const struct virtio_device* device) {
  mmio_write32(device->registers + REG_DEVICE_FEATURES_SELECT, 1);
  uint64_t high = mmio_read32(device->registers + REG_DEVICE_FEATURES);
  mmio_write32(device->registers + REG_DEVICE_FEATURES_SELECT, 0);
  return high << 32 | mmio_read32(device->registers + REG_DEVICE_FEATURES);
}

static void accept(const struct virtio_device* device, uint64_t features) {
  mmio_write32(device->registers + REG_DRIVER_FEATURES_SELECT, 0);
  mmio_write32(device->registers + REG_DRIVER_FEATURES, (uint32_t)features);
  mmio_write32(device->registers + REG_DRIVER_FEATURES_SELECT, 1);
  mmio_write32(device->registers + REG_DRIVER_FEATURES, (uint32_t)(features >> 32));
}

static uint8_t status(const struct virtio_device* device) {
  return mmio_read8(device->registers + REG_STATUS);
}

static void set_status(const struct virtio_device* device, uint8_t value) {
  mmio_write8(device->registers + REG_STATUS, value);
}

static uint16_t queue_size_max(const struct virtio_device* device, uint16_t number) {
  mmio_write16(device->registers + REG_QUEUE_SELECT, number);
  return mmio_read16(device->registers + REG_QUEUE_SIZE);
}

static void enable_queue(const struct virtio_device* device, struct virtqueue* queue) {
  uint64_t registers = device->registers;
  mmio_write16(registers + REG_QUEUE_SELECT, queue->number);
  mmio_write16(registers + REG_QUEUE_SIZE, queue->size);
  mmio_write16(registers + REG_QUEUE_MESSAGE, device->queue_message);
  set64(registers + REG_QUEUE_DESCRIPTORS, (uint64_t)queue->descriptors);
  set64(registers + REG_QUEUE_AVAILABLE, (uint64_t)queue->available);
  set64(registers + REG_QUEUE_USED, (uint64_t)queue->used);
  uint32_t doorbell = mmio_read16(registers + REG_QUEUE_NOTIFY_OFFSET) * device->notify_step;
  queue->doorbell = device->notify + doorbell;
  queue->narrow_doorbell = true;
  mmio_write16(registers + REG_QUEUE_ENABLE, 1);
}

static void route_interrupts(struct virtio_device* device, unsigned irq) {
  uint64_t capability = pci_next_capability(device->function, 0, PCI_CAPABILITY_MSIX);
  if (capability == 0) {
    print("probe: virtio: the device has no MSI-X\n");
    end_panic();
  }
  pci_enable_msix(device->function, capability, irq);
  device->queue_message = 0;
}

static void acknowledge(const struct virtio_device* device) {
  (void)device;  // messages want no answer
}

static const struct virtio_transport pci_transport = {
    .name = "pci",
    .offered = offered,
    .accept = accept,
    .status = status,
    .set_status = set_status,
    .queue_size_max = queue_size_max,
    .enable_queue = enable_queue,
    .route_interrupts = route_interrupts,
    .acknowledge = acknowledge,
};

static uint64_t structure(uint64_t function, uint8_t wanted, uint64_t* capability) {
  uint64_t at = 0;
  while ((at = pci_next_capability(function, at, PCI_CAPABILITY_VENDOR)) != 0) {
    if (mmio_read8(at + CAP_STRUCTURE) == wanted) {
      *capability = at;
      return pci_bar(function, mmio_read8(at + CAP_BAR)) + mmio_read32(at + CAP_OFFSET);
    }
  }
  print("probe: virtio: the device has not all structures of a modern one\n");
  end_panic();
}

static void open_function(uint64_t function, struct virtio_device* device) {
  uint64_t capability;
  *device = (struct virtio_device){
      .transport = &pci_transport, .function = function, .queue_message = NO_MESSAGE};
  device->registers = structure(function, STRUCTURE_COMMON, &capability);
  device->config = structure(function, STRUCTURE_DEVICE, &capability);
  device->notify = structure(function, STRUCTURE_NOTIFY, &capability);
  device->notify_step = mmio_read32(capability + CAP_NOTIFY_STEP);
  pci_enable(function);
}

bool virtio_pci_find(uint32_t kind, unsigned* index, struct virtio_device* device) {
  uint64_t ecam = pci_ecam();
  if (ecam == 0) {
    return false;
  }
  for (unsigned slot = 0; slot < PCI_SLOTS; ++slot) {
    uint64_t function = pci_function(ecam, slot);
    uint32_t id = mmio_read32(function);
    bool modern = id == ((MODERN_DEVICE + kind) << 16 | VENDOR);
    bool transitional = kind == VIRTIO_BLOCK && id == ((uint32_t)TRANSITIONAL_BLOCK << 16 | VENDOR);
    if ((modern || transitional) && (*index)-- == 0) {
      open_function(function, device);
      return true;
    }
  }
  return false;
}
