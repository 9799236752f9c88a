// SPDX-License-Identifier: Apache-2.0
#include "devices/block/block_request.h"

#include <optional>

#include "devices/virtio/uapi.h"
#include "src/base/endian.h"

namespace vireo {

namespace {

struct RequestHeader {
  le32 type;
  le32 ioprio;
  le64 sector;
};
static_assert(sizeof(RequestHeader) == sizeof(virtio_blk_outhdr));

struct RangeHeader {
  le64 sector;
  le32 num_sectors;
  le32 flags;
};
static_assert(sizeof(RangeHeader) == sizeof(virtio_blk_discard_write_zeroes));

/// Bytes of the range, where it is all on the disk.
std::optional<std::uint64_t> offset_on_disk(const BlockRequestRules& rules, std::uint64_t sector,
                                            std::uint64_t length) {
  std::uint64_t offset = 0;
  if (__builtin_mul_overflow(sector, std::uint64_t{kSectorSize}, &offset) || offset > rules.size ||
      length > rules.size - offset) {
    return std::nullopt;
  }
  return offset;
}

bool is_aligned(const BlockRequestRules& rules, std::uint64_t offset, std::uint64_t length) {
  return ((offset | length) & (rules.block_size - 1)) == 0;
}

/// IN and OUT: `data` is at the request's bytes, all of which are of the disk.
std::uint8_t parse_transfer(const BlockRequestRules& rules, std::uint64_t sector,
                            BufferCursor& data, std::uint64_t length, BlockRequest& request) {
  const std::optional<std::uint64_t> offset = offset_on_disk(rules, sector, length);
  if (!offset || !is_aligned(rules, *offset, length)) {
    return VIRTIO_BLK_S_IOERR;
  }
  request.offset = *offset;
  request.length = length;
  return data.take(length, request.pieces) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
}

std::uint8_t parse_range(const BlockRequestRules& rules, const RangeHeader& header,
                         BlockRequest& request) {
  const bool may_unmap = request.type == VIRTIO_BLK_T_WRITE_ZEROES;
  const std::uint32_t flags = header.flags;
  // §5.2.6.2: unknown flags, and unmap where it makes no sense.
  if ((flags & ~std::uint32_t{VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP}) != 0 ||
      (flags != 0 && !may_unmap)) {
    return VIRTIO_BLK_S_UNSUPP;
  }
  const std::uint64_t length = std::uint64_t{header.num_sectors} * kSectorSize;
  const std::optional<std::uint64_t> offset = offset_on_disk(rules, header.sector, length);
  if (header.num_sectors > kRangeSectorsMax || !offset || !is_aligned(rules, *offset, length)) {
    return VIRTIO_BLK_S_IOERR;
  }
  if (length > 0) {
    request.ranges.push_back({.offset = *offset, .length = length, .unmap = flags != 0});
  }
  return VIRTIO_BLK_S_OK;
}

std::uint8_t parse_ranges(const BlockRequestRules& rules, Reader& reader, BlockRequest& request) {
  if (reader.remaining() == 0 || reader.remaining() % sizeof(RangeHeader) != 0 ||
      reader.remaining() / sizeof(RangeHeader) > kRangesMax) {
    return VIRTIO_BLK_S_IOERR;
  }
  while (const auto header = reader.read_object<RangeHeader>()) {
    if (const std::uint8_t status = parse_range(rules, *header, request);
        status != VIRTIO_BLK_S_OK) {
      return status;
    }
  }
  return VIRTIO_BLK_S_OK;
}

bool accepted(const BlockRequestRules& rules, unsigned feature) {
  return (rules.features & feature_bit(feature)) != 0;
}

}  // namespace

std::uint64_t BlockRequest::bytes() const {
  std::uint64_t sum = length;
  if (type == VIRTIO_BLK_T_WRITE_ZEROES) {
    for (const Range& range : ranges) {
      sum += range.length;
    }
  }
  return sum;
}

std::uint8_t parse_block_request(const DescriptorChain& chain, const BlockRequestRules& rules,
                                 BlockRequest& request) {
  request.offset = 0;
  request.length = 0;
  request.ranges.clear();
  request.pieces.clear();
  Reader reader(chain.readable());
  Writer writer(chain.writable());
  const auto header = reader.read_object<RequestHeader>();
  if (!header || writer.remaining() == 0) {
    request.type = ~0U;
    return VIRTIO_BLK_S_IOERR;
  }
  request.type = header->type;
  const std::uint64_t for_driver = writer.remaining() - 1;  // without the status
  switch (request.type) {
    case VIRTIO_BLK_T_IN:
      return parse_transfer(rules, header->sector, writer, for_driver, request);
    case VIRTIO_BLK_T_OUT:
      return rules.readonly
                 ? VIRTIO_BLK_S_IOERR
                 : parse_transfer(rules, header->sector, reader, reader.remaining(), request);
    case VIRTIO_BLK_T_FLUSH:
      return accepted(rules, VIRTIO_BLK_F_FLUSH) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_UNSUPP;
    case VIRTIO_BLK_T_DISCARD:
      return accepted(rules, VIRTIO_BLK_F_DISCARD) ? parse_ranges(rules, reader, request)
                                                   : VIRTIO_BLK_S_UNSUPP;
    case VIRTIO_BLK_T_WRITE_ZEROES:
      return accepted(rules, VIRTIO_BLK_F_WRITE_ZEROES) ? parse_ranges(rules, reader, request)
                                                        : VIRTIO_BLK_S_UNSUPP;
    case VIRTIO_BLK_T_GET_ID:
      return for_driver >= kIdBytes && writer.take(kIdBytes, request.pieces) ? VIRTIO_BLK_S_OK
                                                                             : VIRTIO_BLK_S_IOERR;
    default:
      return VIRTIO_BLK_S_UNSUPP;
  }
}

bool write_block_status(const DescriptorChain& chain, std::uint8_t status) {
  Writer writer(chain.writable());
  return writer.remaining() > 0 && writer.skip(writer.remaining() - 1) &&
         writer.write_object(status);
}

}  // namespace vireo
