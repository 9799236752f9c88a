// SPDX-License-Identifier: Apache-2.0
// A disk that is changed while its driver uses it: nothing is lost, and nothing stops.
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "devices/block/block_device.h"
#include "devices/block/overlay_backing.h"
#include "devices/block/overlay_disk.h"
#include "devices/block/overlay_file.h"
#include "tests/block/disk_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/fake_guest.h"
#include "tests/support/pci_driver.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kSize = 1 * kMiB;

std::unique_ptr<Disk> open_raw(const std::string& path, bool writable = true) {
  return std::make_unique<RawDisk>(open_test_file(path, {.writable = writable}));
}

/// A machine with one disk.
struct Machine {
  Machine(const BlockDevice::Settings& settings, std::unique_ptr<Disk> disk, unsigned reactors = 1)
      : guest(reactors), device(settings, std::move(disk)), driver(guest, device) {
    driver.begin((kEventIdx | kFlushFeature | feature_bit(VIRTIO_BLK_F_MQ)) & driver.offered());
    blk.emplace(guest, driver);
  }
  ~Machine() { driver.reset(); }

  /// What becomes of it: an empty text, or the error's.
  std::string change(BlockChange::Wanted wanted) {
    std::string error;
    guest.on_first_reactor([&](Task& done) {
      Result<> begun = begin(std::move(wanted), [&](const Result<>& result) {
        error = result ? "" : result.error().message();
        guest.reactors().front()->post(done);
      });
      if (!begun) {
        error = begun.error().message();
        guest.reactors().front()->post(done);
      }
    });
    return error;
  }
  Result<> begin(BlockChange::Wanted wanted, BlockChange::Done done) {
    BlockChange::Place place = {.first = guest.reactors().front(), .host = &driver.core()};
    for (unsigned i = 0; i < driver.core().queue_count(); ++i) {
      place.queues.push_back(&driver.core().queue_reactor(i));
    }
    return device.change().begin(std::move(wanted), place, std::move(done));
  }
  /// As the driver reads it; sectors.
  std::uint64_t capacity() {
    le64 capacity;
    driver.core().read_config(0, std::as_writable_bytes(std::span(&capacity, 1)));
    return capacity;
  }

  FakeGuest guest;
  BlockDevice device;
  PciDriver driver;
  std::optional<BlockDriver> blk;
};

TEST_CASE("block change: a disk grows, and its driver is told") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, kSize);
  for (const bool over_base : {false, true}) {
    INFO(over_base);
    const std::string overlay = directory / "overlay";
    const auto open = [&]() -> std::unique_ptr<Disk> {
      if (!over_base) {
        return open_raw(image);
      }
      DiskFile base_file = open_test_file(image, {});
      const auto base = overlay_base_of(image, base_file);
      REQUIRE(base);
      if (::access(overlay.c_str(), F_OK) < 0) {
        REQUIRE(make_overlay(overlay, *base, base_file));
      }
      auto file = open_overlay(overlay, true);
      REQUIRE(file);
      return std::make_unique<OverlayDisk>(
          std::move(*file), OverlayBacking{.overlays = {}, .image = std::move(base_file)});
    };
    {
      Machine m({.id = "grows"}, open());
      const std::uint64_t before = m.capacity();
      const std::uint64_t sector = before + kMiB / 512 - 8;
      CHECK(m.blk->read(sector, 4096) == VIRTIO_BLK_S_IOERR);
      CHECK(m.change({.bytes = before * 512 + kMiB}) == "");
      CHECK(m.capacity() == before + kMiB / 512);
      CHECK(m.driver.core().config_generation() == 1);
      CHECK((m.driver.acknowledge() & VIRTIO_MMIO_INT_CONFIG) != 0);
      CHECK(m.blk->read(sector, 4096) == VIRTIO_BLK_S_OK);
      CHECK(std::ranges::count(m.blk->data().first(4096), std::byte{0}) == 4096);
      std::ranges::fill(m.blk->data().first(4096), std::byte{0x31});
      CHECK(m.blk->write(sector, 4096) == VIRTIO_BLK_S_OK);
      CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
      CHECK(m.change({.bytes = before * 512}).find("can only grow") != std::string::npos);
      CHECK(m.change({.bytes = before * 512 + kMiB + 100}).find("multiple of 512") !=
            std::string::npos);
    }
    Machine again({.id = "grown"}, open());
    CHECK(again.blk->read(again.capacity() - 8, 4096) == VIRTIO_BLK_S_OK);
    CHECK(std::ranges::count(again.blk->data().first(4096), std::byte{0x31}) == 4096);
  }
}

TEST_CASE("block change: a file that was changed from outside is measured anew") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, kSize);
  Machine m({.id = "outside"}, open_raw(image));
  for (const std::uint64_t size : {2 * kSize, kSize / 2}) {
    REQUIRE(::truncate(image.c_str(), static_cast<off_t>(size)) == 0);
    CHECK(m.change({}) == "");
    CHECK(m.capacity() == size / 512);
    CHECK(m.blk->read(size / 512 - 1, 512) == VIRTIO_BLK_S_OK);
    CHECK(m.blk->read(size / 512, 512) == VIRTIO_BLK_S_IOERR);
  }
  CHECK(m.change({}) == "");
  CHECK(m.driver.core().config_generation() == 2);  // nothing new, nothing told
}

TEST_CASE("block change: what a disk cannot become is refused, and it stays as it was") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, kSize);
  {
    Machine m({.id = "fixed", .readonly = true}, open_raw(image, false));
    CHECK(m.change({.bytes = 2 * kSize}) == "size: the disk is read-only; leave it out");
    CHECK(m.change({.bytes = kSize}) == "");
  }
  const auto base = open_test_file(image, {});
  const auto name = overlay_base_of(image, base);
  REQUIRE(name);
  REQUIRE(make_overlay(directory / "overlay", *name, base));
  auto file = open_overlay(directory / "overlay", true);
  REQUIRE(file);
  Machine m({.id = "full"},
            std::make_unique<OverlayDisk>(std::move(*file), *open_backing(image, false)));
  CHECK(m.change({.bytes = std::uint64_t{1} << 40}).find("larger base") != std::string::npos);
  CHECK(m.capacity() == kSize / 512);
}

/// What a SlowDisk has seen, which may outlive it.
struct Seen {
  std::atomic<unsigned> begun = 0;  // reads and writes
  std::atomic<unsigned> flushes = 0;
  std::atomic<bool> gone = false;
};

/// A disk that ends its reads and writes when it is told to.
class SlowDisk final : public Disk {
 public:
  SlowDisk(Seen& seen, int grow_errnum = 0) : seen_(seen), grow_errnum_(grow_errnum) {}
  ~SlowDisk() override { seen_.gone = true; }
  std::uint64_t size() const override { return kSize; }
  Result<> check_growth(std::uint64_t /*bytes*/) const override { return {}; }
  const BlockLimits& limits() const override { return limits_; }
  int written_file() const override { return -1; }
  OverlayBacking freeze() override { return {}; }

  /// Ends what is on it.
  void let_end(FakeGuest& guest) {
    guest.on_first_reactor([&](Task& done) {
      for (DiskOp* const op : std::exchange(waiting_, {})) {
        op->finish(0);
      }
      guest.reactors().front()->post(done);
    });
  }

 protected:
  void begin(DiskOp& op, Ring& /*ring*/) override {
    switch (op.kind) {
      case DiskOp::Kind::kFlush:
        ++seen_.flushes;
        op.finish(0);
        return;
      case DiskOp::Kind::kGrow:
        op.finish(grow_errnum_);
        return;
      default:
        waiting_.push_back(&op);
        ++seen_.begun;
        return;
    }
  }
  void proceed(DiskOp& /*op*/, Ring& /*ring*/, int /*errnum*/) override {}

 private:
  Seen& seen_;
  int grow_errnum_;
  BlockLimits limits_;
  std::vector<DiskOp*> waiting_;  // of the reactor
};

void wait_for(const std::function<bool()>& condition) {
  while (!condition()) {
    std::this_thread::yield();
  }
}

TEST_CASE("block change: requests end on the disk that they were begun on, new ones go on") {
  Seen seen;
  auto first = std::make_unique<SlowDisk>(seen);
  SlowDisk& old = *first;
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, 2 * kSize);
  Machine m({.id = "swapped"}, std::move(first));
  const std::uint64_t at = m.guest.allocate(4096);
  const virtio_blk_outhdr header = {.type = VIRTIO_BLK_T_OUT, .ioprio = 0, .sector = 0};
  REQUIRE(m.guest.memory().write_object(GuestAddress(at), header));
  const std::uint16_t head =
      m.driver.queue(0).add({{at, 16, false}, {at + 512, 512, false}, {at + 32, 1, true}});
  m.driver.kick(0);
  wait_for([&] { return seen.begun == 1; });

  std::atomic<bool> begun = false;
  std::atomic<bool> changed = false;
  BlockChange::Wanted wanted = {.disk = open_raw(image)};
  m.guest.on_first_reactor([&](Task& done) {
    begun =
        m.begin(std::move(wanted), [&](const Result<>& r) { changed = r.has_value(); }).has_value();
    m.guest.reactors().front()->post(done);
  });
  REQUIRE(begun);
  wait_for([&] { return m.capacity() == 2 * kSize / 512; });
  // The new one is served meanwhile, and nothing was asked of the old one.
  CHECK(m.blk->read(kSize / 512, 512) == VIRTIO_BLK_S_OK);
  CHECK(holds_pattern(m.blk->data().first(512), kSize));
  CHECK_FALSE(changed);
  CHECK(seen.begun == 1);
  CHECK(seen.flushes == 0);

  old.let_end(m.guest);
  CHECK(m.driver.wait_used(0).id == head);
  wait_for([&] { return changed.load(); });
  CHECK(seen.flushes == 1);
  CHECK(seen.gone);
  CHECK(m.blk->write(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(seen.begun == 1);
}

TEST_CASE("block change: what cannot grow leaves the old disk where it was") {
  Seen seen;
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, kSize);
  Machine m({.id = "stays"}, open_raw(image));
  CHECK(m.change({.disk = std::make_unique<SlowDisk>(seen, ENOSPC), .bytes = 2 * kSize}) ==
        "growing it: No space left on device");
  CHECK(seen.gone);
  CHECK(m.capacity() == kSize / 512);
  CHECK(m.blk->read(1, 512) == VIRTIO_BLK_S_OK);
  CHECK(holds_pattern(m.blk->data().first(512), 512));
}

TEST_CASE("block change: other limits count at once, for who waits by the old ones too") {
  constexpr std::uint64_t kHour = 3'600'000'000'000;
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, kSize);
  Machine m(
      {.id = "limited", .rate_limit = {.ops = TokenBucketConfig{.size = 1, .refill_ns = kHour}}},
      open_raw(image));
  CHECK(m.blk->read(0, 512) == VIRTIO_BLK_S_OK);
  m.blk->set_header(VIRTIO_BLK_T_FLUSH, 0);
  m.driver.queue(0).add({{m.blk->header_address(), 16, false}, {m.blk->status_address(), 1, true}});
  m.driver.kick(0);
  wait_for([&] { return m.device.counters().throttled == 1; });
  CHECK(m.change({.rate_limit = RateLimitConfig{}}) == "");
  CHECK(m.driver.wait_used(0).length == 1);
  CHECK(m.change({.rate_limit = RateLimitConfig{
                      .ops = TokenBucketConfig{.size = 1, .refill_ns = kHour}}}) == "");
  CHECK(m.blk->read(0, 512) == VIRTIO_BLK_S_OK);
  CHECK(m.device.counters().throttled == 1);
}

TEST_CASE("block change: disks swapped under four busy queues lose no request") {
  const TemporaryDirectory directory;
  const std::array<std::string, 2> images = {directory / "a", directory / "b"};
  for (const std::string& image : images) {
    make_image(image, kSize);
  }
  Machine m({.id = "busy", .queues = 4}, open_raw(images[0]), 3);
  constexpr unsigned kEach = 16;
  const std::uint64_t room = m.guest.allocate(std::uint64_t{4} * kEach * 1024);
  const auto read = [&](unsigned queue, unsigned slot, std::uint64_t sector) {
    const std::uint64_t at = room + (std::uint64_t{queue} * kEach + slot) * 1024;
    const virtio_blk_outhdr header = {.type = VIRTIO_BLK_T_IN, .ioprio = 0, .sector = sector};
    REQUIRE(m.guest.memory().write_object(GuestAddress(at), header));
    m.driver.queue(queue).add({{at, 16, false}, {at + 16, 512, true}, {at + 528, 1, true}});
  };
  for (unsigned round = 0; round < 200; ++round) {
    for (unsigned queue = 0; queue < 4; ++queue) {
      for (unsigned slot = 0; slot < kEach; ++slot) {
        read(queue, slot, (std::uint64_t{round} * 7 + queue * kEach + slot) % (kSize / 512));
      }
      m.driver.kick(queue);
    }
    CHECK(m.change({.disk = open_raw(images.at((round + 1) % 2))}) == "");
    for (unsigned queue = 0; queue < 4; ++queue) {
      for (unsigned slot = 0; slot < kEach; ++slot) {
        REQUIRE(m.driver.wait_used(queue).length == 513);
      }
      for (unsigned slot = 0; slot < kEach; ++slot) {
        const std::uint64_t sector =
            (std::uint64_t{round} * 7 + queue * kEach + slot) % (kSize / 512);
        REQUIRE(holds_pattern(
            m.guest.bytes().subspan(room + (std::uint64_t{queue} * kEach + slot) * 1024 + 16, 512),
            sector * 512));
      }
    }
  }
}

/// Counts its runs.
struct Counted {
  void run() { ++runs; }
  std::atomic<unsigned> runs = 0;
  Task task;
};

TEST_CASE("block: a stop that a disk holds up is taken back, and all goes on when it answers") {
  Seen seen;
  auto owned = std::make_unique<SlowDisk>(seen);
  SlowDisk& disk = *owned;
  Machine m({.id = "held"}, std::move(owned));
  const auto read = [&m] {
    m.blk->set_header(VIRTIO_BLK_T_IN, 0);
    m.driver.queue(0).add({{m.blk->header_address(), 16, false},
                           {m.blk->data_address(), 512, true},
                           {m.blk->status_address(), 1, true}});
    m.driver.kick(0);
  };
  read();
  wait_for([&] { return seen.begun == 1; });
  Counted quiet;
  Counted resumed;
  quiet.task.bind<Counted, &Counted::run>(&quiet);
  resumed.task.bind<Counted, &Counted::run>(&resumed);
  m.guest.on_first_reactor([&](Task& done) {
    m.driver.core().quiesce(quiet.task);
    m.driver.core().resume(resumed.task);
    m.guest.reactors().front()->post(done);
  });
  m.guest.on_first_reactor([&](Task& done) {
    CHECK(m.driver.core().moving());
    m.guest.reactors().front()->post(done);
  });
  CHECK((quiet.runs == 0 && resumed.runs == 0));
  disk.let_end(m.guest);
  CHECK(m.driver.wait_used(0).length == 513);
  wait_for([&] { return resumed.runs == 1; });
  CHECK(quiet.runs == 1);
  read();
  wait_for([&] { return seen.begun == 2; });
  disk.let_end(m.guest);
  CHECK(m.driver.wait_used(0).length == 513);
}

}  // namespace
}  // namespace vireo
