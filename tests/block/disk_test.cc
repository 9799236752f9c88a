// SPDX-License-Identifier: Apache-2.0
// Operations on a ring, one at a time: which are over at once, and what the host fails.
#include "devices/block/disk.h"

#include <cerrno>
#include <csignal>
#include <optional>

#include <sys/resource.h>
#include <sys/uio.h>

#include "tests/block/disk_fixture.h"

namespace vireo {
namespace {

constexpr std::uint64_t kImageSize = std::uint64_t{4} << 20;
constexpr std::uint64_t kBlock = 4096;

/// Whether the kernel has no way to begin a buffered write to `path` and wait later.
bool kernel_waits(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDWR));
  std::array<std::byte, 512> bytes = {};
  iovec piece = {.iov_base = bytes.data(), .iov_len = bytes.size()};
  REQUIRE(::preadv2(file.get(), &piece, 1, 0, 0) == static_cast<ssize_t>(bytes.size()));
  return ::pwritev2(file.get(), &piece, 1, 0, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP;
}

/// A raw disk, used on this thread.
struct DiskOnRing {
  explicit DiskOnRing(bool may_wait, const DiskFileOptions& options = {.writable = true}) {
    make_image(image, kImageSize);
    disk.emplace(open_test_file(image, options));
    REQUIRE(ring.create({.may_wait = may_wait}));
    REQUIRE(ring.enable());
    op.bind<DiskOnRing, &DiskOnRing::on_done>(this);
  }

  /// Begins it; whether it was over at once.
  bool start(DiskOp::Kind kind, std::uint64_t offset, std::uint64_t length) {
    op.kind = kind;
    op.offset = offset;
    op.length = length;
    op.pieces = {{.iov_base = bytes.data(), .iov_len = length / 4},
                 {.iov_base = bytes.data() + length / 4, .iov_len = length - length / 4}};
    result.reset();
    disk->start(op, ring);
    const bool at_once = result.has_value();
    CHECK(at_once == (ring.in_flight() == 0));
    while (!result) {
      REQUIRE(ring.submit(true));
      ring.run_completions(1);
    }
    return at_once;
  }
  void on_done(DiskOp& /*op*/, int errnum) { result = errnum; }

  TemporaryDirectory directory;
  std::string image = directory / "image";
  std::vector<std::byte> bytes = std::vector<std::byte>(std::size_t{256} << 10, std::byte{0x5a});
  Ring ring;
  std::optional<RawDisk> disk;
  DiskOp op;
  std::optional<int> result;
};

TEST_CASE("disk: a small buffered write is over at once on a thread that may wait for it") {
  for (const bool may_wait : {false, true}) {
    DiskOnRing d(may_wait);
    const bool at_once = may_wait && kernel_waits(d.image);
    d.start(DiskOp::Kind::kWrite, 0, kBlock);  // finds out what the kernel can
    CHECK(d.result == 0);
    for (const std::uint64_t length : {std::uint64_t{512}, kBlock, std::uint64_t{64} << 10}) {
      // One may take its time on a machine that is busy; the next is not at once then.
      bool seen = false;
      int tries = 0;
      do {
        seen = d.start(DiskOp::Kind::kWrite, length, length);
        CHECK(d.result == 0);
      } while (seen != at_once && ++tries < 100);
      CHECK(seen == at_once);
      CHECK(std::ranges::count(read_image(d.image, length, length), std::byte{0x5a}) ==
            static_cast<std::ptrdiff_t>(length));
    }
    CHECK_FALSE(d.start(DiskOp::Kind::kWrite, 0, std::uint64_t{128} << 10));
    CHECK_FALSE(d.start(DiskOp::Kind::kRead, 0, kBlock));
    CHECK_FALSE(d.start(DiskOp::Kind::kFlush, 0, 0));
    CHECK(d.result == 0);
  }
}

TEST_CASE("disk: a small read from the page cache that comes alone is over at once") {
  DiskOnRing d(false);
  const UniqueFd file(::open(d.image.c_str(), O_RDWR));
  const auto holds = [&d](std::uint64_t offset, std::uint64_t length) {
    return d.result == 0 && holds_pattern(std::span(d.bytes).first(length), offset);
  };
  CHECK_FALSE(d.start(DiskOp::Kind::kRead, 0, kBlock));
  d.op.alone = true;
  for (const std::uint64_t length : {std::uint64_t{512}, kBlock, std::uint64_t{64} << 10}) {
    CHECK(d.start(DiskOp::Kind::kRead, kBlock, length));
    CHECK(holds(kBlock, length));
  }
  CHECK_FALSE(d.start(DiskOp::Kind::kRead, 0, std::uint64_t{128} << 10));
  CHECK(holds(0, std::uint64_t{128} << 10));
  // What is not there is read by the ring, and so is some more; then it is tried again.
  REQUIRE(::fdatasync(file.get()) == 0);
  REQUIRE(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED) == 0);
  CHECK_FALSE(d.start(DiskOp::Kind::kRead, 0, kBlock));
  CHECK(holds(0, kBlock));
  int later = 0;
  while (later < 1000 && !d.start(DiskOp::Kind::kRead, 0, kBlock)) {
    ++later;
  }
  CHECK(holds(0, kBlock));
  CHECK((later > 10 && later < 100));
  // Half of it is there.
  REQUIRE(::posix_fadvise(file.get(), kBlock, 0, POSIX_FADV_DONTNEED) == 0);
  d.start(DiskOp::Kind::kRead, 0, 2 * kBlock);
  CHECK(holds(0, 2 * kBlock));
  // The file was cut short under the disk.
  REQUIRE(::ftruncate(file.get(), kBlock) == 0);
  d.start(DiskOp::Kind::kRead, 2 * kBlock, kBlock);
  CHECK(d.result == EIO);
}

TEST_CASE("disk: direct reads and writes are the ring's on every thread") {
  DiskOnRing d(true, {.writable = true, .direct = true});
  d.op.alone = true;
  for (int i = 0; i < 3; ++i) {
    CHECK_FALSE(d.start(DiskOp::Kind::kRead, 0, kBlock));
    CHECK_FALSE(d.start(DiskOp::Kind::kWrite, 0, kBlock));
    CHECK(d.result == 0);
  }
}

TEST_CASE("disk: what the host fails, and writes in part, is the same at once and later") {
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before = {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  for (const bool may_wait : {false, true}) {
    DiskOnRing d(may_wait);
    d.start(DiskOp::Kind::kWrite, 0, kBlock);
    const rlimit limit = {.rlim_cur = kImageSize - 1024, .rlim_max = before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
    d.start(DiskOp::Kind::kWrite, kImageSize - kBlock, kBlock);
    CHECK(d.result == EFBIG);
    d.start(DiskOp::Kind::kWrite, kImageSize - 512, 512);
    CHECK(d.result == EFBIG);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(std::ranges::count(read_image(d.image, kImageSize - kBlock, kBlock - 1024),
                             std::byte{0x5a}) == kBlock - 1024);
    CHECK(holds_pattern(read_image(d.image, kImageSize - 1024, 1024), kImageSize - 1024));
    d.start(DiskOp::Kind::kWrite, kImageSize - 512, 512);
    CHECK(d.result == 0);
  }
}

}  // namespace
}  // namespace vireo
