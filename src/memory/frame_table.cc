// SPDX-License-Identifier: Apache-2.0
#include "src/memory/frame_table.h"

#include <cstring>

#include <zstd.h>

#include <fmt/core.h>

#include "src/base/endian.h"
#include "src/memory/page_table.h"

namespace vireo {

namespace {

constexpr std::uint32_t kZstd = 1;

struct WireHead {
  le32 method;
  le32 places;
  le64 reserved;
};
struct WireFrame {
  le64 offset;
  le64 size;
  le64 checksum;
};
static_assert(sizeof(WireHead) == 16 && sizeof(WireFrame) == 24);

std::unexpected<Error> bad(const std::string& what) {
  return fail(ErrorCode::kBadInput, "frame table: " + what);
}

}  // namespace

std::uint64_t frame_table_size(std::uint64_t places) {
  return sizeof(WireHead) + (places + kFramePlaces - 1) / kFramePlaces * sizeof(WireFrame);
}

std::vector<std::byte> encode_frame_table(const FrameTable& table) {
  std::vector<std::byte> bytes(sizeof(WireHead) + table.frames.size() * sizeof(WireFrame));
  const WireHead head = {.method = kZstd, .places = table.places, .reserved = 0};
  std::memcpy(bytes.data(), &head, sizeof(head));
  std::size_t at = sizeof(head);
  for (const FrameTable::Frame& frame : table.frames) {
    const WireFrame wire = {.offset = frame.offset, .size = frame.size, .checksum = frame.checksum};
    std::memcpy(&bytes[at], &wire, sizeof(wire));
    at += sizeof(wire);
  }
  return bytes;
}

Result<FrameTable> decode_frame_table(std::span<const std::byte> bytes, std::uint64_t places,
                                      std::uint64_t size) {
  WireHead head;
  if (bytes.size() < sizeof(head)) {
    return bad(fmt::format("has {} bytes", bytes.size()));
  }
  std::memcpy(&head, bytes.data(), sizeof(head));
  bytes = bytes.subspan(sizeof(head));
  FrameTable table = {.places = head.places, .frames = {}};
  if (head.method != kZstd) {
    return bad(fmt::format("is of method {}", std::uint32_t{head.method}));
  }
  if (table.places == 0 || table.places > kFramePlacesMax) {
    return bad(fmt::format("has frames of {} places", table.places));
  }
  const std::uint64_t count = (places + table.places - 1) / table.places;
  if (bytes.size() % sizeof(WireFrame) != 0 || bytes.size() / sizeof(WireFrame) != count) {
    return bad(
        fmt::format("has {} bytes of frames, where {} frames are needed", bytes.size(), count));
  }
  const std::uint64_t most = ZSTD_compressBound(table.places * kImagePage);
  table.frames.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    WireFrame wire;
    std::memcpy(&wire, &bytes[i * sizeof(wire)], sizeof(wire));
    const FrameTable::Frame frame = {
        .offset = wire.offset, .size = wire.size, .checksum = wire.checksum};
    if (frame.offset > size || frame.size > size - frame.offset || frame.size > most) {
      return bad(
          fmt::format("frame {} has {} bytes at {} of {}", i, frame.size, frame.offset, size));
    }
    table.frames[i] = frame;
  }
  return table;
}

}  // namespace vireo
