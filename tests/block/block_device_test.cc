// SPDX-License-Identifier: Apache-2.0
#include "devices/block/block_device.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include "devices/block/overlay_backing.h"
#include "tests/block/disk_fixture.h"
#include "tests/support/device_suite.h"

namespace vireo {
namespace {

constexpr std::uint64_t kImageSize = std::uint64_t{4} << 20;

bool all_zero(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

/// One device, one driver over MMIO.
struct Machine {
  explicit Machine(const BlockDevice::Settings& settings = {.id = "disk"},
                   std::uint64_t features = kEventIdx | kFlushFeature | kTrimFeatures,
                   std::uint64_t image_size = kImageSize) {
    make_image(image, image_size);
    device = make_block_device(image, settings);
    driver = std::make_unique<MmioDriver>(guest, *device);
    driver->begin(features & (driver->offered() | kEventIdx));
    blk = std::make_unique<BlockDriver>(guest, *driver);
  }

  TemporaryDirectory directory;
  std::string image = directory / "image";
  FakeGuest guest{1};
  std::unique_ptr<BlockDevice> device;
  std::unique_ptr<MmioDriver> driver;
  std::unique_ptr<BlockDriver> blk;
};

/// Requests for the suite: reads, each of a place and to a place of its own.
DeviceUnderTest make_for_suite(FakeGuest& guest, const std::string& image) {
  constexpr std::uint32_t kRoom = 4096;
  const std::uint64_t room = guest.allocate(DeviceSuite::kInFlight * kRoom);
  const auto at = [room](unsigned number) {
    return room + std::uint64_t{number % DeviceSuite::kInFlight} * kRoom;
  };
  return {.device = make_block_device(image),
          .request =
              [at](FakeGuest& g, unsigned number) {
                const virtio_blk_outhdr header = {
                    .type = VIRTIO_BLK_T_IN, .ioprio = 0, .sector = number};
                REQUIRE(g.memory().write_object(GuestAddress(at(number)), header));
                std::ranges::fill(g.bytes().subspan(at(number) + 16, 513), std::byte{0xee});
                return std::vector<FakeRing::Segment>{{at(number), 16, false},
                                                      {at(number) + 16, 100, true},
                                                      {at(number) + 116, 412, true},
                                                      {at(number) + 528, 1, true}};
              },
          .check =
              [at](FakeGuest& g, unsigned number, const FakeRing::Used& used) {
                CHECK(used.length == 513);
                const unsigned slot = number % DeviceSuite::kInFlight;
                CHECK(holds_pattern(g.bytes().subspan(at(slot) + 16, 512), slot * 512));
                CHECK(g.bytes()[at(slot) + 528] == std::byte{VIRTIO_BLK_S_OK});
              }};
}

TEST_CASE("block: what every device does, over both transports, with one reactor and with three") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, 64 << 10);
  const auto make = [&image](FakeGuest& guest) { return make_for_suite(guest, image); };
  for (const unsigned reactors : {1U, 3U}) {
    DeviceSuite(make, reactors).run<MmioDriver>();
    DeviceSuite(make, reactors).run<PciDriver>();
  }
}

TEST_CASE("block: what is written is read back, and is in the image") {
  Machine m;
  CHECK(m.blk->read(3, 8192) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->used_length == 8193);
  CHECK(holds_pattern(m.blk->data().first(8192), 3 * 512));
  std::ranges::fill(m.blk->data().first(4096), std::byte{0x5a});
  CHECK(m.blk->write(8, 4096) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->used_length == 1);
  CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
  CHECK(std::ranges::count(read_image(m.image, 4096, 4096), std::byte{0x5a}) == 4096);
  CHECK(holds_pattern(read_image(m.image, 0, 4096), 0));
  CHECK(holds_pattern(read_image(m.image, 8192, 4096), 8192));
  // The whole room at once, and the last sector.
  CHECK(m.blk->read(0, BlockDriver::kDataBytes) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->read(kImageSize / 512 - 1, 512) == VIRTIO_BLK_S_OK);
  CHECK(holds_pattern(m.blk->data().first(512), kImageSize - 512));
  CHECK(m.device->counters().reads == 3);
  CHECK(m.device->counters().written_bytes == 4096);
}

TEST_CASE("block: a request may be cut into descriptors anywhere") {
  Machine m;
  const std::uint64_t header = m.blk->header_address();
  const std::uint64_t data = m.blk->data_address();
  const std::uint64_t status = m.blk->status_address();
  m.blk->set_header(VIRTIO_BLK_T_IN, 2);
  // The header in three, the data in odd pieces, the last of which the status shares.
  CHECK(m.blk->status_of({{header, 1, false},
                          {header + 1, 7, false},
                          {header + 8, 8, false},
                          {data, 1, true},
                          {data + 1, 1000, true},
                          {status - 23, 24, true}}) == VIRTIO_BLK_S_OK);
  CHECK(holds_pattern(m.blk->data().first(1001), 1024));
  CHECK(holds_pattern(m.guest.bytes().subspan(status - 23, 23), 1024 + 1001));
  // Header and data in one.
  m.blk->set_header(VIRTIO_BLK_T_OUT, 0);
  std::ranges::fill(m.guest.bytes().subspan(header + 16, 512 - 16), std::byte{7});
  CHECK(m.blk->status_of({{header, 16 + 100, false}, {data, 412, false}, {status, 1, true}}) ==
        VIRTIO_BLK_S_OK);
  CHECK(read_image(m.image, 99, 1)[0] == std::byte{7});
  CHECK(read_image(m.image, 100, 1)[0] == m.blk->data()[0]);
}

TEST_CASE("block: what cannot be is refused, and nothing is done") {
  Machine m;
  const std::uint64_t header = m.blk->header_address();
  const std::uint64_t data = m.blk->data_address();
  const std::uint64_t status = m.blk->status_address();
  constexpr std::uint64_t kEnd = kImageSize / 512;
  CHECK(m.blk->read(kEnd, 512) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->read(kEnd - 1, 1024) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->read(~std::uint64_t{0}, 512) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->read(std::uint64_t{1} << 55, 512) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->read(0, 511) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->write(kEnd, 512) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->write(0, 100) == VIRTIO_BLK_S_IOERR);
  m.blk->set_header(12345, 0);
  CHECK(m.blk->status_of({{header, 16, false}, {status, 1, true}}) == VIRTIO_BLK_S_UNSUPP);
  // A header that is too short, no room for the status, nothing to read at all.
  CHECK(m.blk->status_of({{header, 15, false}, {status, 1, true}}) == VIRTIO_BLK_S_IOERR);
  m.blk->set_header(VIRTIO_BLK_T_OUT, 0);
  CHECK(m.blk->status_of({{header, 16, false}, {data, 512, false}}) == 0xee);
  CHECK(m.blk->used_length == 0);
  CHECK(m.blk->status_of({{status, 1, true}}) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->read(0, 0) == VIRTIO_BLK_S_OK);
  CHECK(holds_pattern(read_image(m.image, 0, kImageSize), 0));
  CHECK(m.device->counters().refused == 11);
  CHECK(m.device->counters().errors == 0);
}

TEST_CASE("block: the serial, in any pieces") {
  Machine m({.id = "a-serial-of-20-bytes"});
  m.blk->set_header(VIRTIO_BLK_T_GET_ID, 0);
  const std::uint64_t header = m.blk->header_address();
  const std::uint64_t data = m.blk->data_address();
  const std::uint64_t status = m.blk->status_address();
  CHECK(m.blk->status_of(
            {{header, 16, false}, {data, 3, true}, {data + 3, 17, true}, {status, 1, true}}) ==
        VIRTIO_BLK_S_OK);
  CHECK(std::memcmp(m.blk->data().data(), "a-serial-of-20-bytes", 20) == 0);
  CHECK(m.blk->status_of({{header, 16, false}, {data, 19, true}, {status, 1, true}}) ==
        VIRTIO_BLK_S_IOERR);
}

TEST_CASE("block: discard gives the room back, write-zeroes leaves zeros") {
  Machine m;
  CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
  struct stat before = {};
  REQUIRE(::stat(m.image.c_str(), &before) == 0);
  CHECK(m.blk->trim(VIRTIO_BLK_T_DISCARD, {.sector = 2048, .num_sectors = 2048, .flags = 0}) ==
        VIRTIO_BLK_S_OK);
  struct stat after = {};
  REQUIRE(::stat(m.image.c_str(), &after) == 0);
  CHECK(after.st_blocks <= before.st_blocks - 2048);
  CHECK(after.st_size == before.st_size);
  CHECK(m.blk->trim(VIRTIO_BLK_T_WRITE_ZEROES, {.sector = 8, .num_sectors = 9, .flags = 0}) ==
        VIRTIO_BLK_S_OK);
  CHECK(all_zero(read_image(m.image, 8 * 512, 9 * 512)));
  CHECK(m.blk->trim(
            VIRTIO_BLK_T_WRITE_ZEROES,
            {.sector = 100, .num_sectors = 100, .flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP}) ==
        VIRTIO_BLK_S_OK);
  CHECK(all_zero(read_image(m.image, 100 * 512, 100 * 512)));
  CHECK(holds_pattern(read_image(m.image, 0, 8 * 512), 0));
  CHECK(holds_pattern(read_image(m.image, 17 * 512, 83 * 512), 17 * 512));

  const std::vector<virtio_blk_discard_write_zeroes> several = {
      {.sector = 300, .num_sectors = 1, .flags = 0},
      {.sector = 400, .num_sectors = 0, .flags = 0},
      {.sector = 500, .num_sectors = 2, .flags = 0}};
  CHECK(m.blk->trim(VIRTIO_BLK_T_WRITE_ZEROES, several) == VIRTIO_BLK_S_OK);
  CHECK(all_zero(read_image(m.image, 300 * 512, 512)));
  CHECK(all_zero(read_image(m.image, 500 * 512, 1024)));
  CHECK(holds_pattern(read_image(m.image, 400 * 512, 512), 400 * 512));

  constexpr std::uint32_t kEnd = kImageSize / 512;
  CHECK(m.blk->trim(VIRTIO_BLK_T_DISCARD, {.sector = kEnd, .num_sectors = 1, .flags = 0}) ==
        VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->trim(VIRTIO_BLK_T_DISCARD, {.sector = 0, .num_sectors = ~0U, .flags = 0}) ==
        VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->trim(VIRTIO_BLK_T_DISCARD, {.sector = 0, .num_sectors = 1, .flags = 1}) ==
        VIRTIO_BLK_S_UNSUPP);
  CHECK(m.blk->trim(VIRTIO_BLK_T_WRITE_ZEROES, {.sector = 0, .num_sectors = 1, .flags = 2}) ==
        VIRTIO_BLK_S_UNSUPP);
  const std::vector<virtio_blk_discard_write_zeroes> many(
      kRangesMax + 1, {.sector = 0, .num_sectors = 1, .flags = 0});
  CHECK(m.blk->trim(VIRTIO_BLK_T_DISCARD, many) == VIRTIO_BLK_S_IOERR);
  CHECK(holds_pattern(read_image(m.image, 0, 8 * 512), 0));
}

TEST_CASE("block: a read-only disk, and one whose driver did not ask for more") {
  Machine readonly({.id = "ro", .readonly = true});
  CHECK((readonly.driver->offered() & feature_bit(VIRTIO_BLK_F_RO)) != 0);
  CHECK((readonly.driver->offered() & (kTrimFeatures | kFlushFeature)) == 0);
  CHECK(readonly.blk->read(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(readonly.blk->write(0, 512) == VIRTIO_BLK_S_IOERR);
  CHECK(readonly.blk->trim(VIRTIO_BLK_T_DISCARD, {.sector = 0, .num_sectors = 1, .flags = 0}) ==
        VIRTIO_BLK_S_UNSUPP);

  Machine modest({.id = "modest"}, kEventIdx);
  CHECK(modest.blk->flush() == VIRTIO_BLK_S_UNSUPP);
  CHECK(modest.blk->trim(VIRTIO_BLK_T_WRITE_ZEROES, {.sector = 0, .num_sectors = 1, .flags = 0}) ==
        VIRTIO_BLK_S_UNSUPP);
}

TEST_CASE("block: the configuration space") {
  Machine m({.id = "q", .queues = 3});
  const auto config = [&m](std::uint64_t offset) { return m.driver->read(0x100 + offset); };
  CHECK(config(offsetof(virtio_blk_config, capacity)) == kImageSize / 512);
  CHECK(config(offsetof(virtio_blk_config, seg_max)) == 254);
  CHECK(config(offsetof(virtio_blk_config, blk_size)) == 512);
  CHECK((config(offsetof(virtio_blk_config, num_queues) - 2) >> 16) == 3);
  CHECK(m.driver->max_size(2) == 256);
  CHECK(m.driver->max_size(3) == 0);
  CHECK((m.driver->offered() & feature_bit(VIRTIO_BLK_F_MQ)) != 0);
}

TEST_CASE("block: a file that was cut short, and one that cannot grow, cost their requests only") {
  Machine m;
  REQUIRE(::truncate(m.image.c_str(), kImageSize / 2) == 0);
  CHECK(m.blk->read(kImageSize / 512 - 8, 4096) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->read(kImageSize / 1024 - 4, 4096) == VIRTIO_BLK_S_IOERR);  // half of it is there
  CHECK(m.blk->read(0, 4096) == VIRTIO_BLK_S_OK);
  CHECK(m.device->counters().errors == 2);
}

/// A disk that writes down what it is asked for, and fails what it is told to.
class RecordingDisk final : public Disk {
 public:
  using Kinds = std::vector<DiskOp::Kind>;

  std::uint64_t size() const override { return kImageSize; }
  Result<> check_growth(std::uint64_t /*bytes*/) const override { return {}; }
  const BlockLimits& limits() const override { return limits_; }
  int written_file() const override { return -1; }
  OverlayBacking freeze() override { return {}; }

  Kinds asked;
  DiskOp::Kind failing = DiskOp::Kind::kRead;
  int errnum = 0;

 protected:
  void begin(DiskOp& op, Ring& /*ring*/) override {
    asked.push_back(op.kind);
    op.finish(op.kind == failing ? errnum : 0);
  }
  void proceed(DiskOp& /*op*/, Ring& /*ring*/, int /*errnum*/) override {}

 private:
  BlockLimits limits_;
};

struct RecordingMachine {
  explicit RecordingMachine(std::uint64_t features) {
    auto owned = std::make_unique<RecordingDisk>();
    disk = owned.get();
    device = std::make_unique<BlockDevice>(BlockDevice::Settings{.id = "rec"}, std::move(owned));
    driver = std::make_unique<MmioDriver>(guest, *device);
    driver->begin(features);
    blk = std::make_unique<BlockDriver>(guest, *driver);
  }

  FakeGuest guest{1};
  RecordingDisk* disk = nullptr;
  std::unique_ptr<BlockDevice> device;
  std::unique_ptr<MmioDriver> driver;
  std::unique_ptr<BlockDriver> blk;
};

TEST_CASE("block: a driver that takes no flush has its writes on the disk when they end") {
  using Kind = DiskOp::Kind;
  const virtio_blk_discard_write_zeroes range = {.sector = 0, .num_sectors = 1, .flags = 0};
  RecordingMachine through(kEventIdx | kTrimFeatures);
  CHECK(through.blk->write(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(through.blk->read(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(through.blk->trim(VIRTIO_BLK_T_DISCARD, std::vector{range, range}) == VIRTIO_BLK_S_OK);
  CHECK(through.disk->asked == RecordingDisk::Kinds{Kind::kWrite, Kind::kFlush, Kind::kRead,
                                                    Kind::kDiscard, Kind::kDiscard, Kind::kFlush});
  RecordingMachine back(kEventIdx | kFlushFeature);
  CHECK(back.blk->write(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(back.blk->flush() == VIRTIO_BLK_S_OK);
  CHECK(back.disk->asked == RecordingDisk::Kinds{Kind::kWrite, Kind::kFlush});
}

TEST_CASE("block: what the host fails is that request's status, and counted") {
  RecordingMachine m(kEventIdx | kFlushFeature);
  m.disk->failing = DiskOp::Kind::kWrite;
  m.disk->errnum = ENOSPC;
  CHECK(m.blk->write(0, 512) == VIRTIO_BLK_S_IOERR);
  CHECK(m.blk->read(0, 512) == VIRTIO_BLK_S_OK);
  m.disk->failing = DiskOp::Kind::kFlush;
  m.disk->errnum = EIO;
  CHECK(m.blk->write(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->flush() == VIRTIO_BLK_S_IOERR);
  CHECK(m.device->counters().errors == 2);
  CHECK(m.device->counters().flushes == 0);

  RecordingMachine through(kEventIdx);
  through.disk->failing = DiskOp::Kind::kFlush;
  through.disk->errnum = EIO;
  CHECK(through.blk->write(0, 512) == VIRTIO_BLK_S_IOERR);
}

TEST_CASE("block: several queues at once, on reactors of their own") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, kImageSize);
  for (const unsigned reactors : {1U, 2U, 4U}) {
    FakeGuest guest(reactors);
    const auto device = make_block_device(image, {.id = "many", .queues = 4});
    PciDriver driver(guest, *device);
    driver.begin(kEventIdx | kFlushFeature | feature_bit(VIRTIO_BLK_F_MQ));
    constexpr unsigned kEach = 32;
    const std::uint64_t room = guest.allocate(std::uint64_t{4} * kEach * 1024);
    const auto at = [room](unsigned queue, unsigned i) {
      return room + (std::uint64_t{queue} * kEach + i) * 1024;
    };
    for (unsigned queue = 0; queue < 4; ++queue) {
      for (unsigned i = 0; i < kEach; ++i) {
        const virtio_blk_outhdr header = {
            .type = VIRTIO_BLK_T_IN, .ioprio = 0, .sector = std::uint64_t{queue} * kEach + i};
        REQUIRE(guest.memory().write_object(GuestAddress(at(queue, i)), header));
        driver.queue(queue).add({{at(queue, i), 16, false},
                                 {at(queue, i) + 16, 512, true},
                                 {at(queue, i) + 528, 1, true}});
      }
    }
    for (unsigned queue = 0; queue < 4; ++queue) {
      driver.kick(queue);
    }
    for (unsigned queue = 0; queue < 4; ++queue) {
      for (unsigned i = 0; i < kEach; ++i) {
        CHECK(driver.wait_used(queue).length == 513);
      }
      for (unsigned i = 0; i < kEach; ++i) {
        CHECK(holds_pattern(guest.bytes().subspan(at(queue, i) + 16, 512),
                            (std::uint64_t{queue} * kEach + i) * 512));
      }
    }
    driver.reset();
  }
}

TEST_CASE("block: a limit of operations holds for all kinds of requests") {
  constexpr std::uint64_t kMillisecond = 1'000'000;
  Machine m({.id = "slow",
             .rate_limit = {.ops = TokenBucketConfig{.size = 2, .refill_ns = 100 * kMillisecond}}});
  const std::uint64_t began = monotonic_ns();
  for (int i = 0; i < 3; ++i) {
    CHECK(m.blk->read(0, 512) == VIRTIO_BLK_S_OK);
    CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
  }
  CHECK(monotonic_ns() - began >= 150 * kMillisecond);
  CHECK(m.device->counters().throttled >= 1);
}

}  // namespace
}  // namespace vireo
