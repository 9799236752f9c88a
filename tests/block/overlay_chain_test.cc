// SPDX-License-Identifier: Apache-2.0
// Overlays over overlays, as snapshots that freeze disks leave them.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <sys/stat.h>

#include "devices/block/overlay_backing.h"
#include "devices/block/overlay_disk.h"
#include "devices/block/overlay_file.h"
#include "devices/block/overlay_offline.h"
#include "tests/block/disk_fixture.h"

namespace vireo {
namespace {

constexpr std::uint64_t kSize = (std::uint64_t{1} << 19) + 1536;  // ends within a block

/// An image and overlays over it, and what a guest reads of them.
struct Chain {
  Chain() {
    make_image(image, kSize);
    model = read_image(image, 0, kSize);
  }
  std::string name(std::size_t overlay) const {
    return directory / ("overlay" + std::to_string(overlay));
  }
  /// Freezes what is there; how the file is made while a machine runs.
  OverlayFile begin_next(std::uint64_t size) {
    const std::string path = count == 0 ? image : name(count - 1);
    UniqueFd fd(::open(name(count).c_str(), O_RDWR | O_CREAT | O_EXCL, 0644));
    Result<OverlayFile> made = begin_overlay(
        std::move(fd),
        {.path = path, .size = size, .mtime_ns = mtime_of(path), .is_overlay = count > 0});
    REQUIRE(made);
    REQUIRE(update_overlay_header(*made));
    ++count;
    return std::move(*made);
  }
  std::unique_ptr<Disk> open() const {
    if (count == 0) {
      return std::make_unique<RawDisk>(open_test_file(image, {.writable = true}));
    }
    Result<OverlayFile> top = open_overlay(name(count - 1), true);
    REQUIRE(top);
    Result<OverlayBacking> backing =
        open_backing(top->header.base_path, top->header.base_is_overlay);
    INFO((backing ? "" : backing.error().message()));
    REQUIRE(backing);
    const Result<OverlayBase> base = overlay_base_of(top->header.base_path, *backing);
    REQUIRE(base);
    REQUIRE(check_overlay_base(top->header, *base));
    return std::make_unique<OverlayDisk>(std::move(*top), std::move(*backing));
  }
  static std::int64_t mtime_of(const std::string& path) {
    struct stat status = {};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    return status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec;
  }

  TemporaryDirectory directory;
  std::string image = directory / "image";
  std::size_t count = 0;  // of overlays
  std::vector<std::byte> model;
};

struct Machine {
  explicit Machine(const Chain& chain)
      : device({.id = "chain"}, chain.open()), driver(guest, device) {
    driver.begin(kEventIdx | kFlushFeature | kTrimFeatures);
    blk = std::make_unique<BlockDriver>(guest, driver);
  }
  /// As a snapshot that freezes does it, with nothing opened anew.
  void freeze(Chain& chain) {
    driver.quiesce();
    OverlayFile next = chain.begin_next(device.disk().size());
    OverlayBacking backing = device.disk().freeze();
    device.exchange_disk(std::make_unique<OverlayDisk>(std::move(next), std::move(backing)));
    driver.resume();
  }
  /// Writes, zeroes and discards; those of a discard may be anything then, and are written.
  void change_some(Chain& chain, std::mt19937& random) {
    for (int i = 0; i < 12; ++i) {
      const std::uint64_t sectors = 1 + random() % 30;
      const std::uint64_t sector = random() % (chain.model.size() / 512 - sectors);
      const auto place = std::span(chain.model).subspan(sector * 512, sectors * 512);
      const auto bytes = static_cast<std::uint32_t>(place.size());
      const virtio_blk_discard_write_zeroes range = {
          .sector = sector, .num_sectors = bytes / 512, .flags = 0};
      if (random() % 4 == 0) {
        CHECK(blk->trim(VIRTIO_BLK_T_WRITE_ZEROES, range) == VIRTIO_BLK_S_OK);
        std::ranges::fill(place, std::byte{0});
        continue;
      }
      if (random() % 4 == 0) {
        CHECK(blk->trim(VIRTIO_BLK_T_DISCARD, range) == VIRTIO_BLK_S_OK);
      }
      std::ranges::fill(place, static_cast<std::byte>(random()));
      std::ranges::copy(place, blk->data().begin());
      CHECK(blk->write(sector, bytes) == VIRTIO_BLK_S_OK);
    }
    CHECK(blk->flush() == VIRTIO_BLK_S_OK);
  }
  std::vector<std::byte> read_all() {
    std::vector<std::byte> all;
    for (std::uint64_t at = 0; at < device.disk().size();) {
      const std::uint64_t count =
          std::min<std::uint64_t>(BlockDriver::kDataBytes, device.disk().size() - at);
      CHECK(blk->read(at / 512, static_cast<std::uint32_t>(count)) == VIRTIO_BLK_S_OK);
      const auto bytes = blk->data().first(count);
      all.insert(all.end(), bytes.begin(), bytes.end());
      at += count;
    }
    return all;
  }

  FakeGuest guest{1};
  BlockDevice device;
  MmioDriver driver;
  std::unique_ptr<BlockDriver> blk;
};

TEST_CASE("overlay chain: what a guest wrote before and behind each freeze is there") {
  Chain chain;
  std::mt19937 random(3);  // NOLINT(cert-msc51-cpp,cert-msc32-c): the same each time
  std::vector<std::vector<std::byte>> frozen;
  for (int life = 0; life < 3; ++life) {
    Machine machine(chain);
    CHECK(machine.read_all() == chain.model);
    for (int freezes = 0; freezes < 3; ++freezes) {
      machine.change_some(chain, random);
      CHECK(machine.read_all() == chain.model);
      machine.freeze(chain);
      frozen.push_back(chain.model);
      machine.change_some(chain, random);
      CHECK(machine.read_all() == chain.model);
    }
    machine.driver.reset();
  }
  // Each that was frozen still is what it was then.
  for (std::size_t i = 0; i < frozen.size(); ++i) {
    CAPTURE(i);
    const auto backing = open_backing(i == 0 ? chain.image : chain.name(i - 1), i > 0);
    REQUIRE(backing);
    std::vector<std::byte> bytes(backing->size());
    REQUIRE(backing->read(bytes, 0));
    CHECK(bytes == frozen[i]);
  }
}

TEST_CASE("overlay chain: what is frozen can be read by others, and is written by none") {
  Chain chain;
  Machine machine(chain);
  CHECK(!open_disk_file(chain.image, {}));
  machine.freeze(chain);
  OverlayBacking backing = machine.device.disk().freeze();
  REQUIRE(make_shared_file(backing.image));
  CHECK(open_disk_file(chain.image, {}));
  CHECK(!open_disk_file(chain.image, {.writable = true}));
  CHECK(!open_overlay(chain.name(0), false));  // the machine's own
}

TEST_CASE("overlay chain: a disk that grows is zeros behind what is below") {
  Chain chain;
  std::mt19937 random(4);  // NOLINT(cert-msc51-cpp,cert-msc32-c): the same each time
  {
    Machine machine(chain);
    machine.freeze(chain);
    machine.driver.reset();
  }
  // The first grows by more than a block, the second by more again.
  for (const std::uint64_t more : {std::uint64_t{10240}, std::uint64_t{66048}}) {
    Result<OverlayFile> top = open_overlay(chain.name(chain.count - 1), true);
    REQUIRE(top);
    top->header.size += more;
    REQUIRE(::truncate(chain.name(chain.count - 1).c_str(),
                       static_cast<off_t>(top->header.data_offset + top->header.size)) == 0);
    REQUIRE(update_overlay_header(*top));
    chain.model.resize(top->header.size);
    top = fail(ErrorCode::kSystem, "closed");
    Machine machine(chain);
    CHECK(machine.read_all() == chain.model);
    machine.change_some(chain, random);
    CHECK(machine.read_all() == chain.model);
    machine.freeze(chain);
    machine.change_some(chain, random);
    CHECK(machine.read_all() == chain.model);
    machine.driver.reset();
  }
}

TEST_CASE(
    "overlay chain: folded into the one below, or put over one further down, it is the same") {
  Chain chain;
  std::mt19937 random(5);  // NOLINT(cert-msc51-cpp,cert-msc32-c): the same each time
  {
    Machine machine(chain);
    for (int i = 0; i < 3; ++i) {
      machine.freeze(chain);
      machine.change_some(chain, random);
    }
    machine.driver.reset();
  }
  {
    Result<OverlayFile> top = open_overlay(chain.name(2), true);
    Result<OverlayFile> below = open_overlay(chain.name(1), true);
    REQUIRE((top && below));
    CHECK(top->map.count_present() > 0);
    REQUIRE(commit_overlay(*top, *below, chain.name(1)));
    CHECK(top->map.count_present() == 0);
  }
  CHECK(Machine(chain).read_all() == chain.model);
  --chain.count;  // the last has nothing any more
  CHECK(Machine(chain).read_all() == chain.model);
  {
    Result<OverlayFile> top = open_overlay(chain.name(1), true);
    REQUIRE(top);
    const auto old_base = open_backing(chain.name(0), true);
    const auto new_base = open_backing(chain.image, false);
    REQUIRE((old_base && new_base));
    REQUIRE(rebase_overlay(*top, *old_base, *new_base, chain.image));
    CHECK(!top->header.base_is_overlay);
  }
  REQUIRE(::unlink(chain.name(0).c_str()) == 0);
  CHECK(Machine(chain).read_all() == chain.model);
}

TEST_CASE("overlay chain: an image that looks like an overlay is an image") {
  Chain chain;
  {
    Machine machine(chain);
    machine.freeze(chain);
    machine.driver.reset();
  }
  // What a guest with a raw disk could write: a header that names another file of the host's.
  const std::string secret = chain.directory / "secret";
  make_image(secret, kSize);
  OverlayFile forged = {.file = {},
                        .header = {.sequence = 1,
                                   .size = kSize,
                                   .map_offset = 8192,
                                   .map_size = 4096,
                                   .data_offset = 12288,
                                   .base_size = kSize,
                                   .base_path = secret},
                        .map = *BlockMap::create(1, 1)};
  const UniqueFd image(::open(chain.image.c_str(), O_WRONLY));
  const OverlayHeaderPage page = encode_overlay_header(forged.header);
  REQUIRE(::pwrite(image.get(), page.data(), page.size(), 0) == static_cast<ssize_t>(page.size()));
  chain.model = read_image(chain.image, 0, kSize);
  CHECK(Machine(chain).read_all() == chain.model);
}

TEST_CASE("overlay chain: what is wrong below is named") {
  Chain chain;
  for (int i = 0; i < 2; ++i) {
    chain.begin_next(kSize);
  }
  SECTION("an overlay that is gone") {
    REQUIRE(::unlink(chain.name(0).c_str()) == 0);
    const auto backing = open_backing(chain.name(1), true);
    REQUIRE(!backing);
    CHECK(backing.error().message().find(chain.name(0)) != std::string::npos);
  }
  SECTION("an image of another size") {
    REQUIRE(::truncate(chain.image.c_str(), 1 << 20) == 0);
    const auto backing = open_backing(chain.name(1), true);
    REQUIRE(!backing);
    CHECK(backing.error().code() == ErrorCode::kBadInput);
    CHECK(backing.error().message().find(chain.image) != std::string::npos);
  }
  SECTION("one that lies over itself") {
    Result<OverlayFile> first = open_overlay(chain.name(0), true);
    REQUIRE(first);
    first->header.base_is_overlay = true;
    first->header.base_path = chain.name(1);
    REQUIRE(update_overlay_header(*first));
    first = fail(ErrorCode::kSystem, "closed");
    const auto backing = open_backing(chain.name(1), true);
    REQUIRE(!backing);
    CHECK(backing.error().message().find("more than 256 overlays") != std::string::npos);
  }
}

}  // namespace
}  // namespace vireo
