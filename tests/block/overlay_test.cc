// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <random>

#include <sys/stat.h>

#include "devices/block/overlay_disk.h"
#include "devices/block/overlay_file.h"
#include "devices/block/overlay_offline.h"
#include "tests/block/disk_fixture.h"

namespace vireo {
namespace {

constexpr std::uint64_t kBaseSize = (std::uint64_t{1} << 20) + 1536;  // ends within a block

std::unique_ptr<OverlayDisk> open_overlay_disk(const std::string& base_path,
                                               const std::string& path) {
  DiskFile base = open_test_file(base_path, {});
  const Result<OverlayBase> known = overlay_base_of(base_path, base);
  REQUIRE(known);
  if (::access(path.c_str(), F_OK) != 0) {
    REQUIRE(make_overlay(path, *known, base));
  }
  Result<OverlayFile> overlay = open_overlay(path, true);
  INFO((overlay ? "" : overlay.error().message()));
  REQUIRE(overlay);
  REQUIRE(check_overlay_base(overlay->header, *known));
  return std::make_unique<OverlayDisk>(std::move(*overlay),
                                       OverlayBacking{.overlays = {}, .image = std::move(base)});
}

/// A machine whose disk is an overlay; as often as wanted over the same files.
struct OverlayMachine {
  OverlayMachine(const std::string& base, const std::string& path) {
    open(base, path);
    driver->begin(kEventIdx | kFlushFeature | kTrimFeatures);
    blk = std::make_unique<BlockDriver>(guest, *driver);
  }
  void open(const std::string& base, const std::string& path) {
    auto owned = open_overlay_disk(base, path);
    disk = owned.get();
    device = std::make_unique<BlockDevice>(BlockDevice::Settings{.id = "over"}, std::move(owned));
    driver = std::make_unique<MmioDriver>(guest, *device);
  }
  /// Saves it, and goes on with the files opened anew.
  void go_on_elsewhere(const std::string& base, const std::string& path) {
    driver->quiesce();
    SnapshotWriter saved;
    driver->save(saved);
    VirtioDriver::Rings rings = driver->take_rings();
    driver = nullptr;
    device = nullptr;
    open(base, path);
    REQUIRE(driver->go_on(std::move(rings), saved.sections()));
    driver->resume();
    blk = std::make_unique<BlockDriver>(guest, *driver);
  }

  FakeGuest guest{1};
  OverlayDisk* disk = nullptr;
  std::unique_ptr<BlockDevice> device;
  std::unique_ptr<MmioDriver> driver;
  std::unique_ptr<BlockDriver> blk;
};

struct Files {
  Files() { make_image(base, kBaseSize); }

  TemporaryDirectory directory;
  std::string base = directory / "base";
  std::string overlay = directory / "overlay";
};

/// An overlay as it begins where the file system has reflinks: with all of its base.
void make_clone(const Files& files) {
  {
    const auto disk = open_overlay_disk(files.base, files.overlay);
  }
  Result<OverlayFile> overlay = open_overlay(files.overlay, true);
  REQUIRE(overlay);
  const std::vector<std::byte> base = read_image(files.base, 0, kBaseSize);
  REQUIRE(::pwrite(overlay->file.fd.get(), base.data(), base.size(),
                   static_cast<off_t>(overlay->header.data_offset)) == kBaseSize);
  overlay->header.cloned = true;
  REQUIRE(update_overlay_header(*overlay));
}

std::vector<std::byte> read_disk(OverlayMachine& m) {
  std::vector<std::byte> bytes;
  for (std::uint64_t at = 0; at < kBaseSize;) {
    const auto count =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(kBaseSize - at, 256 << 10));
    REQUIRE(m.blk->read(at / 512, count) == VIRTIO_BLK_S_OK);
    bytes.insert(bytes.end(), m.blk->data().begin(), m.blk->data().begin() + count);
    at += count;
  }
  return bytes;
}

TEST_CASE("overlay: goes on elsewhere with what was flushed") {
  const Files files;
  OverlayMachine m(files.base, files.overlay);
  CHECK(m.blk->write(8, 4096) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
  const std::vector<std::byte> before = read_disk(m);
  m.go_on_elsewhere(files.base, files.overlay);
  CHECK(read_disk(m) == before);
  CHECK(m.blk->write(24, 512) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
}

TEST_CASE("block map: runs and changed pages") {
  Result<BlockMap> made =
      BlockMap::create(BlockMap::kBlocksOfPage * 3 + 5, BlockMap::kBlocksOfPage * 4);
  REQUIRE(made);
  BlockMap& map = *made;
  CHECK_FALSE(map.changed());
  map.set(10, 1);
  map.set(60, 10);
  map.set(BlockMap::kBlocksOfPage - 1, 2);
  map.set(BlockMap::kBlocksOfPage * 3 + 4, 1);
  CHECK(map.count_present() == 14);
  const auto run = [&map](std::uint64_t first, std::uint64_t most) {
    const BlockMap::Run found = map.run(first, most);
    return std::pair(found.present, found.count);
  };
  CHECK(run(0, 1000) == std::pair(false, std::uint64_t{10}));
  CHECK(run(10, 1000) == std::pair(true, std::uint64_t{1}));
  CHECK(run(11, 1000) == std::pair(false, std::uint64_t{49}));
  CHECK(run(11, 5) == std::pair(false, std::uint64_t{5}));
  CHECK(run(62, 1000) == std::pair(true, std::uint64_t{8}));
  CHECK(run(62, 3) == std::pair(true, std::uint64_t{3}));
  CHECK(run(70, 100000) == std::pair(false, BlockMap::kBlocksOfPage - 71));
  const std::vector<BlockMap::Page> pages = map.take_changed();
  CHECK(pages.size() == 3);
  CHECK_FALSE(map.changed());
  map.set(10, 1);
  CHECK_FALSE(map.changed());  // it was set
}

TEST_CASE("overlay: it reads as the base, takes the writes, and leaves the base alone") {
  Files files;
  {
    OverlayMachine m(files.base, files.overlay);
    CHECK(read_disk(m) == read_image(files.base, 0, kBaseSize));
    CHECK_FALSE(m.disk->wants_flush());
    // In the middle of a block, over a block's edge, and the last sector.
    std::ranges::fill(m.blk->data(), std::byte{0x11});
    CHECK(m.blk->write(3, 512) == VIRTIO_BLK_S_OK);
    CHECK(m.blk->write(15, 1024) == VIRTIO_BLK_S_OK);
    CHECK(m.blk->write(kBaseSize / 512 - 1, 512) == VIRTIO_BLK_S_OK);
    CHECK(m.disk->wants_flush());
    CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
    CHECK_FALSE(m.disk->wants_flush());
    m.driver->reset();
  }
  OverlayMachine again(files.base, files.overlay);
  std::vector<std::byte> expected = read_image(files.base, 0, kBaseSize);
  std::ranges::fill(std::span(expected).subspan(3 * 512, 512), std::byte{0x11});
  std::ranges::fill(std::span(expected).subspan(15 * 512, 1024), std::byte{0x11});
  std::ranges::fill(std::span(expected).last(512), std::byte{0x11});
  CHECK(read_disk(again) == expected);
  bool untouched = true;
  const std::vector<std::byte> base = read_image(files.base, 0, kBaseSize);
  for (std::uint64_t i = 0; i < kBaseSize; ++i) {
    untouched = untouched && base[i] == pattern_at(i);
  }
  CHECK(untouched);
  struct stat status = {};
  REQUIRE(::stat(files.overlay.c_str(), &status) == 0);
  CHECK(status.st_blocks * 512 < 64 << 10);  // sparse
}

TEST_CASE("overlay: what was not flushed is as it was, block by block") {
  Files files;
  {
    OverlayMachine m(files.base, files.overlay);
    std::ranges::fill(m.blk->data(), std::byte{0x22});
    CHECK(m.blk->write(0, 4096) == VIRTIO_BLK_S_OK);
    CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
    CHECK(m.blk->write(64, 4096) == VIRTIO_BLK_S_OK);
    m.driver->reset();
  }
  OverlayMachine again(files.base, files.overlay);
  CHECK(again.blk->read(0, 4096) == VIRTIO_BLK_S_OK);
  CHECK(std::ranges::count(again.blk->data().first(4096), std::byte{0x22}) == 4096);
  CHECK(again.blk->read(64, 4096) == VIRTIO_BLK_S_OK);
  CHECK(std::ranges::equal(again.blk->data().first(4096), read_image(files.base, 64 * 512, 4096)));
}

TEST_CASE("overlay: many requests of all kinds at once leave what they leave on plain memory") {
  constexpr unsigned kRounds = 400;
  constexpr unsigned kAtOnce = 8;
  Files files;
  if (GENERATE(false, true)) {
    make_clone(files);
  }
  std::mt19937 random(1);  // NOLINT(cert-msc51-cpp,cert-msc32-c): the same each time
  std::vector<std::byte> model = read_image(files.base, 0, kBaseSize);
  std::optional<OverlayMachine> machine(std::in_place, files.base, files.overlay);
  for (unsigned round = 0; round < kRounds; ++round) {
    // Requests in flight together do not overlap, but share blocks.
    FakeGuest& guest = machine->guest;
    const std::uint64_t room = machine->blk->data_address();
    std::uint64_t sector = random() % 64;
    unsigned in_flight = 0;
    for (; in_flight < kAtOnce && sector + 40 < kBaseSize / 512; ++in_flight) {
      const std::uint64_t at = room + std::uint64_t{in_flight} * 0x10000;
      const auto sectors = static_cast<std::uint32_t>(1 + random() % 39);
      const bool zeroes = random() % 4 == 0;
      const virtio_blk_outhdr header = {
          .type = zeroes ? __u32{VIRTIO_BLK_T_WRITE_ZEROES} : __u32{VIRTIO_BLK_T_OUT},
          .ioprio = 0,
          .sector = sector};
      REQUIRE(guest.memory().write_object(GuestAddress(at), header));
      const auto place = std::span(model).subspan(sector * 512, std::size_t{sectors} * 512);
      if (zeroes) {
        const virtio_blk_discard_write_zeroes range = {
            .sector = sector, .num_sectors = sectors, .flags = static_cast<__u32>(random() % 2)};
        REQUIRE(guest.memory().write_object(GuestAddress(at + 16), range));
        machine->driver->queue(0).add({{at, 32, false}, {at + 32, 1, true}});
        std::ranges::fill(place, std::byte{0});
      } else {
        const auto bytes = guest.bytes().subspan(at + 512, place.size());
        std::ranges::fill(bytes, static_cast<std::byte>(random()));
        std::ranges::copy(bytes, place.begin());
        machine->driver->queue(0).add(
            {{at, 16, false}, {at + 512, sectors * 512, false}, {at + 32, 1, true}});
      }
      sector += sectors + (random() % 3 == 0 ? random() % 100 : 0);
    }
    machine->driver->kick(0);
    for (unsigned i = 0; i < in_flight; ++i) {
      CHECK(machine->driver->wait_used(0).length == 1);
    }
    if (round % 10 == 0) {
      CHECK(machine->blk->flush() == VIRTIO_BLK_S_OK);
    }
    if (round % 100 == 99) {
      CHECK(machine->blk->flush() == VIRTIO_BLK_S_OK);
      machine->driver->reset();
      machine.emplace(files.base, files.overlay);
      CHECK(read_disk(*machine) == model);
    }
  }
}

TEST_CASE("overlay: two writes to one block that the base still has wait for each other") {
  Files files;
  {
    const auto disk = open_overlay_disk(files.base, files.overlay);
  }
  // A base that answers a read when it is told to: the other end of a pipe.
  std::array<int, 2> ends = {};
  REQUIRE(::pipe(ends.data()) == 0);
  const UniqueFd answers(ends[1]);
  Result<OverlayFile> overlay = open_overlay(files.overlay, true);
  REQUIRE(overlay);
  BlockDevice device(
      {.id = "slow"},
      std::make_unique<OverlayDisk>(
          std::move(*overlay),
          OverlayBacking{.overlays = {},
                         .image = DiskFile{.fd = UniqueFd(ends[0]), .size = kBaseSize}}));
  FakeGuest guest(1);
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx | kFlushFeature);
  BlockDriver blk(guest, driver);
  for (const std::uint64_t sector : {0U, 1U}) {
    const std::uint64_t at = guest.allocate(4096);
    const virtio_blk_outhdr header = {.type = VIRTIO_BLK_T_OUT, .ioprio = 0, .sector = sector};
    REQUIRE(guest.memory().write_object(GuestAddress(at), header));
    std::ranges::fill(guest.bytes().subspan(at + 512, 512), std::byte{0x44});
    driver.queue(0).add({{at, 16, false}, {at + 512, 512, false}, {at + 32, 1, true}});
  }
  driver.kick(0);
  // One of them is done before the base answers a second time.
  const std::vector<std::byte> block(4096, std::byte{0x55});
  for (int i = 0; i < 2; ++i) {
    REQUIRE(write_full(answers.get(), block));
    CHECK(driver.wait_used(0).length == 1);
  }
  CHECK(blk.read(0, 4096) == VIRTIO_BLK_S_OK);
  CHECK(std::ranges::count(blk.data().first(1024), std::byte{0x44}) == 1024);
  CHECK(std::ranges::count(blk.data().subspan(1024, 3072), std::byte{0x55}) == 3072);
  driver.reset();
}

TEST_CASE("overlay: discard gives back what is the overlay's, and the base shows nowhere else") {
  Files files;
  OverlayMachine m(files.base, files.overlay);
  std::ranges::fill(m.blk->data(), std::byte{0x33});
  CHECK(m.blk->write(0, 256 << 10) == VIRTIO_BLK_S_OK);
  CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
  struct stat before = {};
  REQUIRE(::stat(files.overlay.c_str(), &before) == 0);
  CHECK(m.blk->trim(VIRTIO_BLK_T_DISCARD, {.sector = 1, .num_sectors = 511, .flags = 0}) ==
        VIRTIO_BLK_S_OK);
  struct stat after = {};
  REQUIRE(::stat(files.overlay.c_str(), &after) == 0);
  CHECK(after.st_blocks < before.st_blocks - 400);
  CHECK(m.blk->read(0, 512) == VIRTIO_BLK_S_OK);  // of a block that was cut: it stays
  CHECK(m.blk->data()[0] == std::byte{0x33});
  CHECK(m.blk->read(8, 4096) == VIRTIO_BLK_S_OK);
  CHECK(std::ranges::count(m.blk->data().first(4096), std::byte{0}) == 4096);
  // Of the base's blocks nothing can be given back, and nothing changes.
  CHECK(m.blk->trim(VIRTIO_BLK_T_DISCARD, {.sector = 1024, .num_sectors = 64, .flags = 0}) ==
        VIRTIO_BLK_S_OK);
  CHECK(m.blk->read(1024, 4096) == VIRTIO_BLK_S_OK);
  CHECK(std::ranges::equal(m.blk->data().first(4096),
                           read_image(files.base, std::uint64_t{1024} * 512, 4096)));
}

/// Puts the overlay over `base` in a way of `vireo disk`.
void commit(const Files& files, const std::string& base) {
  Result<OverlayFile> overlay = open_overlay(files.overlay, true);
  REQUIRE(overlay);
  DiskFile file = open_test_file(base, {.writable = true});
  REQUIRE(commit_overlay(*overlay, file, base));
}

void rebase(const Files& files, const std::string& base) {
  Result<OverlayFile> overlay = open_overlay(files.overlay, true);
  REQUIRE(overlay);
  REQUIRE(
      rebase_overlay(*overlay, *open_backing(files.base, false), *open_backing(base, false), base));
}

TEST_CASE("overlay: what a guest has seen is in the base that it is committed to") {
  const Files files;
  const bool cloned = GENERATE(false, true);
  const bool rebased = GENERATE(false, true);
  CAPTURE(cloned, rebased);
  if (cloned) {
    make_clone(files);
  }
  std::vector<std::byte> seen;
  {
    OverlayMachine m(files.base, files.overlay);
    std::ranges::fill(m.blk->data(), std::byte{0x33});
    CHECK(m.blk->write(3, 512) == VIRTIO_BLK_S_OK);
    CHECK(m.blk->trim(VIRTIO_BLK_T_DISCARD, {.sector = 1024, .num_sectors = 64, .flags = 0}) ==
          VIRTIO_BLK_S_OK);
    CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
    // Without a flush: the power is cut.
    CHECK(m.blk->write(512, 4096) == VIRTIO_BLK_S_OK);
    m.driver->reset();
  }
  {
    OverlayMachine m(files.base, files.overlay);
    seen = read_disk(m);
    CHECK(m.blk->flush() == VIRTIO_BLK_S_OK);
    m.driver->reset();
  }
  CHECK(seen[3 * 512] == std::byte{0x33});
  std::string base = files.base;
  if (rebased) {
    base = files.directory / "other";
    make_image(base, kBaseSize);
    const UniqueFd fd(::open(base.c_str(), O_RDWR));
    REQUIRE(::pwrite(fd.get(), "other", 5, 4096 * 100) == 5);
    rebase(files, base);
  }
  {
    OverlayMachine m(base, files.overlay);
    CHECK((read_disk(m) == seen));
  }
  commit(files, base);
  CHECK((read_image(base, 0, kBaseSize) == seen));
  OverlayMachine m(base, files.overlay);
  CHECK((read_disk(m) == seen));
}

TEST_CASE("overlay: the header, and what is none") {
  const OverlayHeader header = {.sequence = 7,
                                .size = 1 << 20,
                                .map_offset = 8192,
                                .map_size = 4096,
                                .data_offset = 12288,
                                .cloned = true,
                                .base_size = 1 << 20,
                                .base_mtime_ns = -5,
                                .base_path = "some/base"};
  const OverlayHeaderPage page = encode_overlay_header(header);
  const Result<OverlayHeader> read = decode_overlay_header(page);
  REQUIRE(read);
  CHECK(read->sequence == 7);
  CHECK(read->cloned);
  CHECK(read->base_mtime_ns == -5);
  CHECK(read->base_path == "some/base");
  for (const std::size_t at : {0U, 9U, 20U, 40U, 4000U}) {
    OverlayHeaderPage damaged = page;
    damaged[at] ^= std::byte{1};
    CHECK_FALSE(decode_overlay_header(damaged));
  }
  OverlayHeader wrong = header;
  wrong.map_size = 0;
  CHECK_FALSE(decode_overlay_header(encode_overlay_header(wrong)));
  wrong = header;
  wrong.data_offset = 4096;
  CHECK_FALSE(decode_overlay_header(encode_overlay_header(wrong)));
}

TEST_CASE("overlay: a header that was half written leaves the one before; a cut file is refused") {
  Files files;
  {
    const auto disk = open_overlay_disk(files.base, files.overlay);
  }
  {
    Result<OverlayFile> overlay = open_overlay(files.overlay, true);
    REQUIRE(overlay);
    CHECK(overlay->header.sequence == 1);
    REQUIRE(update_overlay_header(*overlay));
    REQUIRE(update_overlay_header(*overlay));
  }
  const UniqueFd fd(::open(files.overlay.c_str(), O_RDWR));
  CHECK(open_overlay(files.overlay, false)->header.sequence == 3);
  REQUIRE(::pwrite(fd.get(), "torn", 4, 100) == 4);
  CHECK(open_overlay(files.overlay, false)->header.sequence == 2);
  REQUIRE(::pwrite(fd.get(), "torn", 4, 4096 + 100) == 4);
  const Result<OverlayFile> none = open_overlay(files.overlay, false);
  REQUIRE_FALSE(none);
  CHECK(none.error().message().ends_with("no overlay of vireo's: its header is damaged"));
  CHECK(none.error().code() == ErrorCode::kBadInput);
}

TEST_CASE("overlay: over another base it is refused") {
  Files files;
  {
    const auto disk = open_overlay_disk(files.base, files.overlay);
  }
  make_image(files.directory / "other", 4096);
  const DiskFile other = open_test_file(files.directory / "other", {});
  const Result<OverlayFile> overlay = open_overlay(files.overlay, false);
  REQUIRE(overlay);
  const Result<> checked =
      check_overlay_base(overlay->header, *overlay_base_of(files.directory / "other", other));
  REQUIRE_FALSE(checked);
  CHECK(checked.error().message().find("its base had 1050112 bytes and not 4096") !=
        std::string::npos);
}

}  // namespace
}  // namespace vireo
