// SPDX-License-Identifier: Apache-2.0
// A request of virtio-blk (virtio 1.2 §5.2.6): what a descriptor chain asks for, copied out and
// checked once. Knows nothing of disks and rings.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <sys/uio.h>

#include "devices/virtio/descriptor_chain.h"

namespace vireo {

inline constexpr std::uint32_t kSectorSize = 512;
/// More ranges than this are in no discard or write-zeroes request.
inline constexpr std::uint32_t kRangesMax = 16;
/// And no larger ones: 2 GiB.
inline constexpr std::uint32_t kRangeSectorsMax = 1U << 22;
inline constexpr std::uint32_t kIdBytes = 20;  // VIRTIO_BLK_ID_BYTES

/// What requests are checked against.
struct BlockRequestRules {
  std::uint64_t size = 0;  ///< of the disk, in bytes
  std::uint32_t block_size = kSectorSize;
  bool readonly = false;
  std::uint64_t features = 0;  ///< what the driver has accepted
};

struct BlockRequest {
  struct Range {
    std::uint64_t offset = 0;  ///< bytes, within the disk
    std::uint64_t length = 0;
    bool unmap = false;
  };

  std::uint32_t type = 0;       ///< VIRTIO_BLK_T_…
  std::uint64_t offset = 0;     ///< of IN and OUT: bytes, within the disk
  std::uint64_t length = 0;     ///< of their data
  std::vector<Range> ranges;    ///< of DISCARD and WRITE_ZEROES; none is empty
  std::vector<iovec> pieces;    ///< the data of IN, OUT and GET_ID: guest memory
  std::uint64_t bytes() const;  ///< what a limit of bandwidth counts
};

/// Reads `chain` into `request`, whose storage is used again. Returns VIRTIO_BLK_S_OK, or with what
/// status the request has to be refused.
std::uint8_t parse_block_request(const DescriptorChain& chain, const BlockRequestRules& rules,
                                 BlockRequest& request);

/// Writes the status byte, the last one that the device may write. False where there is none.
bool write_block_status(const DescriptorChain& chain, std::uint8_t status);

}  // namespace vireo
