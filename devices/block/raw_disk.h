// SPDX-License-Identifier: Apache-2.0
// A disk whose bytes are those of a file or block device, one to one.
#pragma once

#include <cstdint>
#include <utility>

#include "devices/block/disk.h"

namespace vireo {

class RawDisk final : public Disk {
 public:
  explicit RawDisk(DiskFile file) : file_(std::move(file)) {}

  std::uint64_t size() const override { return file_.size; }
  Result<> measure() override;
  Result<> check_growth(std::uint64_t bytes) const override;
  const BlockLimits& limits() const override { return file_.limits; }
  int written_file() const override { return file_.fd.get(); }
  OverlayBacking freeze() override;

 protected:
  void begin(DiskOp& op, Ring& ring) override;
  void proceed(DiskOp& op, Ring& ring, int errnum) override;

 private:
  void write_zeros(DiskOp& op, Ring& ring);

  DiskFile file_;
};

}  // namespace vireo
