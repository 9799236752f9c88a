// SPDX-License-Identifier: Apache-2.0
// A disk of which a base has what was never written, and an overlay the rest. The base may be
// several: an image, and overlays that were frozen.
//
// Blocks are written to the overlay whole: of one that a request writes in part, and that is still
// the base's, the rest is copied first. The map in memory is ahead of the one in the file: a flush
// makes the data durable, writes the pages of the map that had changed before, and makes those
// durable. All on one reactor.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "devices/block/disk.h"
#include "devices/block/overlay_backing.h"
#include "devices/block/overlay_file.h"

namespace vireo {

class OverlayDisk final : public Disk {
 public:
  OverlayDisk(OverlayFile overlay, OverlayBacking backing)
      : overlay_(std::move(overlay)), backing_(std::move(backing)), limits_(backing_.image.limits) {
    limits_.physical_block_size = kOverlayBlock;
  }

  std::uint64_t size() const override { return overlay_.header.size; }
  Result<> check_growth(std::uint64_t bytes) const override;
  const BlockLimits& limits() const override { return limits_; }
  bool one_reactor() const override { return true; }
  int written_file() const override { return overlay_.file.fd.get(); }
  int base_file() const override { return backing_.top().fd.get(); }
  OverlayBacking freeze() override;
  bool wants_flush() const override { return overlay_.map.changed(); }

 protected:
  void begin(DiskOp& op, Ring& ring) override;
  void proceed(DiskOp& op, Ring& ring, int errnum) override;

 private:
  void read_on(DiskOp& op, Ring& ring);

  void begin_change(DiskOp& op, Ring& ring);
  void change(DiskOp& op, Ring& ring);
  void after_change(DiskOp& op, Ring& ring, int errnum);
  void end_change(DiskOp& op, Ring& ring, int errnum);
  void zero_on(DiskOp& op, Ring& ring);
  bool copy_first(DiskOp& op, Ring& ring);
  void after_base_read(DiskOp& op, Ring& ring);

  void discard_on(DiskOp& op, Ring& ring);

  void begin_flush(DiskOp& op, Ring& ring);
  void flush_on(DiskOp& op, Ring& ring, int errnum);
  void end_flush(DiskOp& op, Ring& ring, int errnum);

  void grow_on(DiskOp& op, Ring& ring, int errnum);

  bool all_present(const DiskOp& op) const;
  bool is_cut(std::uint64_t offset) const;
  std::uint64_t in_file(std::uint64_t offset) const { return overlay_.header.data_offset + offset; }

  OverlayFile overlay_;
  OverlayBacking backing_;
  BlockLimits limits_;
  // Operations that bring blocks into the overlay, no two of them over one block, and those that
  // wait for one of these.
  std::vector<DiskOp*> changing_;
  std::vector<DiskOp*> waiting_;
  // One flush at a time, so that no older page of the map is written over a newer one. Those that
  // come meanwhile are done by the next one together.
  DiskOp* flushing_ = nullptr;
  std::vector<DiskOp*> flushed_with_;
  std::vector<DiskOp*> next_flush_;
  std::vector<BlockMap::Page> pages_;
};

}  // namespace vireo
