// SPDX-License-Identifier: Apache-2.0
// A block device, saved and restored with a disk that may have changed meanwhile, also from bytes
// that nobody saved. That requests go on is the device suite's.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "tests/block/disk_fixture.h"
#include "tests/support/hostile_sections.h"

namespace vireo {
namespace {

constexpr std::uint64_t kImageSize = std::uint64_t{1} << 20;
constexpr std::uint64_t kFeatures = kEventIdx | kFlushFeature | kTrimFeatures;
constexpr std::uint64_t kHour = 3'600'000'000'000;

/// A guest whose disk is saved at one time, and opened again at another.
struct Machine {
  Machine() { make_image(image, kImageSize); }

  void start(const BlockDevice::Settings& settings = {.id = "disk"}) {
    open(settings);
    driver->begin(kFeatures);
    blk = std::make_unique<BlockDriver>(guest, *driver);
  }
  void save() {
    driver->quiesce();
    saved.emplace();
    driver->save(*saved);
    rings = driver->take_rings();
    driver = nullptr;
    device = nullptr;
  }
  Result<> restore(const BlockDevice::Settings& settings = {.id = "disk"}) {
    driver = nullptr;
    open(settings);
    TRY(driver->go_on(std::move(rings), saved->sections()));
    driver->resume();
    blk = std::make_unique<BlockDriver>(guest, *driver);
    return {};
  }
  /// Why it was refused, with an image of `size` bytes there.
  std::string refusal(const BlockDevice::Settings& settings = {.id = "disk"},
                      std::uint64_t size = kImageSize) {
    REQUIRE(::truncate(image.c_str(), static_cast<off_t>(size)) == 0);
    const Result<> restored = restore(settings);
    REQUIRE_FALSE(restored);
    CHECK(driver->core().status() == 0);
    rings = driver->take_rings();
    return restored.error().message();
  }
  std::uint64_t told_capacity() const {
    le64 capacity;
    driver->core().read_config(0, std::as_writable_bytes(std::span(&capacity, 1)));
    return capacity;
  }

  TemporaryDirectory directory;
  std::string image = directory / "image";
  FakeGuest guest{1};
  std::unique_ptr<BlockDevice> device;
  std::unique_ptr<MmioDriver> driver;
  std::unique_ptr<BlockDriver> blk;
  std::optional<SnapshotWriter> saved;
  VirtioDriver::Rings rings;

 private:
  void open(const BlockDevice::Settings& settings) {
    device = nullptr;  // and its lock
    device = make_block_device(image, settings);
    driver = std::make_unique<MmioDriver>(guest, *device);
  }
};

TEST_CASE("block snapshot: a disk that is larger by now is told to its driver") {
  Machine m;
  m.start();
  CHECK(m.blk->write(0, 4096) == VIRTIO_BLK_S_OK);
  m.save();
  REQUIRE(::truncate(m.image.c_str(), 2 * kImageSize) == 0);
  REQUIRE(m.restore());
  CHECK(m.driver->line().edges() > 0);
  CHECK((m.driver->acknowledge() & VIRTIO_MMIO_INT_CONFIG) != 0);
  CHECK(m.told_capacity() == 2 * kImageSize / 512);
  CHECK(m.blk->read(kImageSize / 512, 512) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->read(100, 512) == VIRTIO_BLK_S_OK);
  CHECK(holds_pattern(m.blk->data().first(512), std::uint64_t{100} * 512));
  CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
}

TEST_CASE("block snapshot: a disk that is not the one it was is refused") {
  Machine m;
  m.start();
  m.save();
  CHECK(m.refusal({.id = "disk"}, kImageSize - 512) ==
        "section virtio-blk 3: is of a disk with 2048 sectors, and disk has 2047 here");
  CHECK(m.refusal({.id = "other"}) == "section virtio-blk 3: is of another disk than other");
  CHECK(m.refusal({.id = "disk", .readonly = true}) ==
        "section virtio 3: offers features 0x6200, which the device here has not");
  CHECK(m.refusal({.id = "disk", .flush = false}) ==
        "section virtio 3: offers features 0x200, which the device here has not");
  CHECK(m.refusal({.id = "disk", .queues = 2}).starts_with("section virtio 3: is of a device of"));
  REQUIRE(m.restore());
  CHECK(m.blk->read(0, 512) == VIRTIO_BLK_S_OK);
}

TEST_CASE("block snapshot: what the driver was told of blocks holds on") {
  Machine m;
  m.start();
  m.save();
  // As with a disk before that had larger ones.
  HostileSections larger(m.saved->sections());
  constexpr unsigned kVirtio = 1;
  constexpr std::size_t kConfig = 30;  // what is before it: see the test of the transports
  constexpr std::size_t kBlockSize = kConfig + offsetof(virtio_blk_config, blk_size);
  REQUIRE(larger.bytes(kVirtio).at(kBlockSize + 1) == std::byte{2});
  larger.bytes(kVirtio)[kBlockSize + 1] = std::byte{0x10};
  const auto restore_these = [&m](HostileSections& sections) {
    m.driver = nullptr;
    m.device = nullptr;
    m.device = make_block_device(m.image);
    m.driver = std::make_unique<MmioDriver>(m.guest, *m.device);
    return m.driver->go_on({}, sections.sections());
  };
  REQUIRE(restore_these(larger));
  Result<> changed = m.device->change().begin(
      {.bytes = kImageSize + 512},
      {.first = m.guest.reactors()[0], .queues = {m.guest.reactors()[0]}}, {});
  REQUIRE_FALSE(changed);
  CHECK(changed.error().message() == "size: wants a multiple of 4096 bytes");

  for (const std::byte size : {std::byte{1}, std::byte{3}, std::byte{0}}) {  // 256, 768, 0
    larger.bytes(kVirtio)[kBlockSize + 1] = size;
    const Result<> refused = restore_these(larger);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message().starts_with("section virtio-blk 3: is of a disk with blocks"));
  }
}

TEST_CASE("block snapshot: a flush that failed once does not succeed elsewhere") {
  Machine m;
  m.start();
  m.device->disk().set_flush_failed();
  CHECK(m.blk->flush() == VIRTIO_BLK_S_IOERR);
  m.save();
  REQUIRE(m.restore());
  CHECK(m.blk->write(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->flush() == VIRTIO_BLK_S_IOERR);
}

TEST_CASE("block snapshot: a limit goes on from what it had left, and another begins anew") {
  const BlockDevice::Settings limited = {
      .id = "disk", .rate_limit = {.ops = TokenBucketConfig{.size = 2, .refill_ns = kHour}}};
  Machine m;
  m.start(limited);
  CHECK(m.blk->read(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->read(0, 512) == VIRTIO_BLK_S_OK);
  m.save();
  REQUIRE(m.restore(limited));
  m.blk->set_header(VIRTIO_BLK_T_FLUSH, 0);
  m.driver->queue(0).add(
      {{m.blk->header_address(), 16, false}, {m.blk->status_address(), 1, true}});
  m.driver->queue(0).publish();
  m.save();  // having served what it may
  CHECK_FALSE(m.rings.at(0)->take_used());

  REQUIRE(m.restore({.id = "disk"}));
  CHECK(m.driver->wait_used(0).length == 1);
}

}  // namespace
}  // namespace vireo
