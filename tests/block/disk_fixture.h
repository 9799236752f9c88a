// SPDX-License-Identifier: Apache-2.0
// Images for tests, and a driver of virtio-blk that says what it wants in a line.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include "devices/block/block_device.h"
#include "devices/block/raw_disk.h"
#include "tests/support/catch.h"
#include "tests/support/fake_guest.h"

namespace vireo {

/// A directory that is removed with what is in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = "/var/tmp/vireo-block-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryDirectory() {
    const std::string command = "rm -rf " + path_;
    CHECK(std::system(command.c_str()) == 0);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// What test images hold at `offset`: never zero, and different in each sector.
inline std::byte pattern_at(std::uint64_t offset) {
  return static_cast<std::byte>(1 + (offset / 512 * 7 + offset % 251) % 255);
}

inline bool holds_pattern(std::span<const std::byte> bytes, std::uint64_t offset) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != pattern_at(offset + i)) {
      return false;
    }
  }
  return true;
}

inline void make_image(const std::string& path, std::uint64_t size) {
  std::vector<std::byte> bytes(size);
  for (std::uint64_t i = 0; i < size; ++i) {
    bytes[i] = pattern_at(i);
  }
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644));
  REQUIRE(write_full(fd.get(), bytes));
}

inline std::vector<std::byte> read_image(const std::string& path, std::uint64_t offset,
                                         std::uint64_t size) {
  std::vector<std::byte> bytes(size);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY));
  REQUIRE(read_full_at(fd.get(), bytes, offset));
  return bytes;
}

inline DiskFile open_test_file(const std::string& path, const DiskFileOptions& options) {
  Result<DiskFile> file = open_disk_file(path, options);
  INFO((file ? "" : file.error().message()));
  REQUIRE(file);
  return std::move(*file);
}

inline std::unique_ptr<BlockDevice> make_block_device(const std::string& path,
                                                      BlockDevice::Settings settings = {
                                                          .id = "disk"}) {
  return std::make_unique<BlockDevice>(
      settings, std::make_unique<RawDisk>(open_test_file(path, {.writable = !settings.readonly})));
}

inline constexpr std::uint64_t kFlushFeature = feature_bit(VIRTIO_BLK_F_FLUSH);
inline constexpr std::uint64_t kTrimFeatures =
    feature_bit(VIRTIO_BLK_F_DISCARD) | feature_bit(VIRTIO_BLK_F_WRITE_ZEROES);

/// A driver of one block device: a header, room for data and a status of its own.
class BlockDriver {
 public:
  static constexpr std::uint32_t kDataBytes = 1U << 20;

  BlockDriver(FakeGuest& guest, VirtioDriver& driver)
      : guest_(guest),
        driver_(driver),
        header_(guest.allocate(4096)),
        status_(header_ + 512),
        data_(guest.allocate(kDataBytes)) {}

  std::span<std::byte> data() const { return guest_.bytes().subspan(data_, kDataBytes); }
  std::uint64_t data_address() const { return data_; }
  std::uint64_t header_address() const { return header_; }
  std::uint64_t status_address() const { return status_; }

  void set_header(std::uint32_t type, std::uint64_t sector) {
    const virtio_blk_outhdr header = {.type = type, .ioprio = 0, .sector = sector};
    REQUIRE(guest_.memory().write_object(GuestAddress(header_), header));
    guest_.bytes()[status_] = std::byte{0xee};
  }
  /// The status of a request whose segments are these.
  unsigned status_of(std::span<const FakeRing::Segment> segments) {
    driver_.queue(0).add(segments);
    driver_.kick(0);
    used_length = driver_.wait_used(0).length;
    return std::to_integer<unsigned>(guest_.bytes()[status_]);
  }
  unsigned status_of(std::initializer_list<FakeRing::Segment> segments) {
    return status_of(std::span(segments.begin(), segments.size()));
  }

  unsigned read(std::uint64_t sector, std::uint32_t bytes) {
    set_header(VIRTIO_BLK_T_IN, sector);
    return status_of({{header_, 16, false}, {data_, bytes, true}, {status_, 1, true}});
  }
  unsigned write(std::uint64_t sector, std::uint32_t bytes) {
    set_header(VIRTIO_BLK_T_OUT, sector);
    return status_of({{header_, 16, false}, {data_, bytes, false}, {status_, 1, true}});
  }
  unsigned flush() {
    set_header(VIRTIO_BLK_T_FLUSH, 0);
    return status_of({{header_, 16, false}, {status_, 1, true}});
  }
  /// DISCARD or WRITE_ZEROES of such ranges.
  unsigned trim(std::uint32_t type, std::span<const virtio_blk_discard_write_zeroes> ranges) {
    set_header(type, 0);
    std::ranges::copy(std::as_bytes(ranges), data().begin());
    return status_of({{header_, 16, false},
                      {data_, static_cast<std::uint32_t>(ranges.size_bytes()), false},
                      {status_, 1, true}});
  }
  unsigned trim(std::uint32_t type, const virtio_blk_discard_write_zeroes& range) {
    return trim(type, std::span(&range, 1));
  }

  std::uint32_t used_length = 0;  // of the last one

 private:
  FakeGuest& guest_;
  VirtioDriver& driver_;
  std::uint64_t header_;
  std::uint64_t status_;
  std::uint64_t data_;
};

}  // namespace vireo
