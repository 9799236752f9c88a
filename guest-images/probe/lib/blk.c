// SPDX-License-Identifier: Apache-2.0
#include "blk.h"

#define CONFIG_CAPACITY 0
#define STATUS_PENDING 0xff
#define PAGE 4096

// A chain: header, data, status.
#define CHAIN 3
#define HEADER 0
#define DATA 1
#define STATUS 2
#define HEADER_SIZE 16

static struct virtq_desc* chain_of(const struct blk* blk, uint32_t slot) {
  return blk->tables + CHAIN * slot;
}

// Indices inside of an indirect table are its own.
static uint16_t link_of(const struct blk* blk, uint32_t slot, uint16_t part) {
  return (uint16_t)(blk->indirect ? part : CHAIN * slot + part);
}

static void write_chain(struct blk* blk, uint32_t slot) {
  struct virtq_desc* chain = chain_of(blk, slot);
  struct blk_request* request = &blk->requests[slot];
  chain[HEADER] = (struct virtq_desc){(uint64_t)request, HEADER_SIZE, VIRTQ_DESC_NEXT, 0};
  chain[DATA] = (struct virtq_desc){(uint64_t)blk_data(blk, slot), blk->block_size, 0,
                                    link_of(blk, slot, STATUS)};
  chain[STATUS] = (struct virtq_desc){(uint64_t)&request->status, 1, VIRTQ_DESC_WRITE, 0};
  if (blk->indirect) {
    blk->queue.descriptors[slot] = (struct virtq_desc){
        (uint64_t)chain, CHAIN * sizeof(struct virtq_desc), VIRTQ_DESC_INDIRECT, 0};
  }
}

static void make_slots(struct blk* blk, const struct blk_settings* settings) {
  // §2.7.5.3.1: no chain is longer than the queue, an indirect one neither.
  if (blk->queue.size < CHAIN) {
    print("probe: blk: the queue is shorter than a request\n");
    end_panic();
  }
  uint32_t room = blk->indirect ? blk->queue.size : blk->queue.size / CHAIN;
  blk->depth = settings->depth < room ? settings->depth : room;
  blk->block_size = settings->block_size;
  size_t size = blk->depth * sizeof(struct blk_request);
  blk->requests = memset(allocate(size, PAGE), 0, size);
  blk->tables = blk->indirect ? allocate(blk->depth * CHAIN * sizeof(struct virtq_desc), PAGE)
                              : blk->queue.descriptors;
  uint64_t data = (uint64_t)blk->depth * blk->block_size;
  // Written, so that its first use costs no page faults.
  blk->data = memset(allocate(data, PAGE), 0, data);
  for (uint32_t slot = 0; slot < blk->depth; ++slot) {
    write_chain(blk, slot);
  }
}

void blk_open(struct blk* blk, const struct blk_settings* settings) {
  if (!virtio_find(VIRTIO_BLOCK, settings->index, &blk->device)) {
    print(
        "probe: no such disk: name it, virtio_mmio.device=SIZE@ADDRESS:GSI, or its bus, "
        "ecam=ADDRESS\n");
    end_panic();
  }
  virtio_negotiate(&blk->device, settings->features);
  blk->indirect = (blk->device.features & VIRTIO_F_INDIRECT_DESC) != 0;
  blk->sectors = mmio_read32(blk->device.config + CONFIG_CAPACITY) |
                 (uint64_t)mmio_read32(blk->device.config + CONFIG_CAPACITY + 4) << 32;
  if (settings->interrupts) {
    blk->device.transport->route_interrupts(&blk->device, settings->irq);
  }
  virtqueue_create(&blk->device, 0, settings->queue_size, &blk->queue);
  make_slots(blk, settings);
  virtqueue_want_interrupt(&blk->queue, settings->interrupts);
  virtio_driver_ok(&blk->device);
}

void blk_close(struct blk* blk) {
  virtio_reset(&blk->device);
}

void blk_submit(struct blk* blk, uint32_t slot, uint32_t type, uint64_t sector) {
  struct virtq_desc* chain = chain_of(blk, slot);
  struct blk_request* request = &blk->requests[slot];
  request->type = type;
  request->sector = sector;
  request->status = STATUS_PENDING;
  chain[HEADER].next = link_of(blk, slot, type == BLK_FLUSH ? STATUS : DATA);
  chain[DATA].flags = type == BLK_READ ? VIRTQ_DESC_NEXT | VIRTQ_DESC_WRITE : VIRTQ_DESC_NEXT;
  virtqueue_put(&blk->queue, (uint16_t)(blk->indirect ? slot : CHAIN * slot));
}

bool blk_take(struct blk* blk, uint32_t* slot) {
  uint32_t head;
  if (!virtqueue_take(&blk->queue, &head)) {
    return false;
  }
  *slot = blk->indirect ? head : head / CHAIN;
  if (*slot >= blk->depth || blk->requests[*slot].status == STATUS_PENDING) {
    print_value("blk_unasked_head", head);
    end_panic();
  }
  return true;
}
