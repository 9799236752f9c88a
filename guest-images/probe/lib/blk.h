// SPDX-License-Identifier: Apache-2.0
// A virtio-blk driver (virtio 1.2 §5.2) for one queue and requests of one size: each of `depth`
// slots has a buffer and descriptors that are written once, so that a request costs little.
#ifndef VIREO_PROBE_BLK_H
#define VIREO_PROBE_BLK_H

#include "virtio.h"

#define SECTOR 512

#define BLK_READ 0
#define BLK_WRITE 1
#define BLK_FLUSH 4
#define BLK_OK 0

#define BLK_F_FLUSH ((uint64_t)1 << 9)

struct blk_request {
  uint32_t type;
  uint32_t reserved;
  uint64_t sector;
  volatile uint8_t status;
  uint64_t began;  // the user's
  uint64_t block;  // the user's
} __attribute__((aligned(64)));

struct blk {
  struct virtio_device device;
  struct virtqueue queue;
  uint64_t sectors;
  uint32_t block_size;
  uint32_t depth;
  bool indirect;
  struct blk_request* requests;
  struct virtq_desc* tables;
  uint8_t* data;
};

struct blk_settings {
  unsigned index;     // among the disks
  uint64_t features;  // wanted, where the device has them
  uint16_t queue_size;
  uint32_t block_size;
  uint32_t depth;  // becomes less where the queue does not hold so many
  bool interrupts;
  unsigned irq;
};

void blk_open(struct blk* blk, const struct blk_settings* settings);
// After it the VMM lets go of our memory.
void blk_close(struct blk* blk);
static inline uint8_t* blk_data(const struct blk* blk, uint32_t slot) {
  return blk->data + (uint64_t)slot * blk->block_size;
}
// The slot must be free. The device sees the request at the next virtqueue_publish().
void blk_submit(struct blk* blk, uint32_t slot, uint32_t type, uint64_t sector);
// The slot of a request that is done.
bool blk_take(struct blk* blk, uint32_t* slot);

#endif
