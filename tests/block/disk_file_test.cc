// SPDX-License-Identifier: Apache-2.0
#include "devices/block/disk_file.h"

#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/block/disk_fixture.h"

namespace vireo {
namespace {

std::string refusal(const std::string& path, const DiskFileOptions& options) {
  const Result<DiskFile> file = open_disk_file(path, options);
  return file ? "opened" : file.error().message();
}

TEST_CASE("disk file: a size that no guest could see all of is refused") {
  const TemporaryDirectory directory;
  make_image(directory / "odd", 1000);
  make_image(directory / "empty", 0);
  CHECK(refusal(directory / "odd", {})
            .ends_with("odd: its size is no multiple of 512 bytes; truncate --size=%512 pads it"));
  CHECK(refusal(directory / "empty", {}).ends_with("empty: it is empty"));
  CHECK(refusal(directory / "gone", {}).ends_with("gone: No such file or directory"));
  CHECK(refusal("/dev/null", {}) == "/dev/null: neither a regular file nor a block device");
  CHECK(refusal("/", {}) == "/: neither a regular file nor a block device");
  const std::string pipe = directory / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(refusal(pipe, {}).ends_with("neither a regular file nor a block device"));
}

TEST_CASE("disk file: one writer, or readers, and who holds it is named") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, 4096);
  {
    const DiskFile reader = open_test_file(image, {});
    const DiskFile another = open_test_file(image, {});
    CHECK(refusal(image, {.writable = true}).find("in use by this VM") != std::string::npos);
  }
  const DiskFile writer = open_test_file(image, {.writable = true});
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const std::string holder = "in use by process " + std::to_string(parent) + ": ";
    const bool held = refusal(image, {.writable = true}).find(holder) != std::string::npos &&
                      refusal(image, {}).find(holder) != std::string::npos;
    ::_exit(held ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

TEST_CASE("disk file: a lock ends with the file, and one of another kind counts") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, 4096);
  {
    const DiskFile writer = open_test_file(image, {.writable = true});
  }
  const UniqueFd other(::open(image.c_str(), O_RDWR));
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = 100;
  lock.l_len = 1;
  REQUIRE(::fcntl(other.get(), F_OFD_SETLK, &lock) == 0);
  CHECK(refusal(image, {.writable = true}).find("in use by") != std::string::npos);
  CHECK(refusal(image, {}).find("in use by") != std::string::npos);
}

TEST_CASE("disk file: direct I/O tells what it wants, or is refused with the reason") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  make_image(image, 8192);
  const DiskFile file = open_test_file(image, {.writable = true, .direct = true});
  CHECK(file.limits.memory_alignment > 1);
  CHECK(file.limits.block_size >= 512);
  CHECK((::fcntl(file.fd.get(), F_GETFL) & (O_DIRECT | O_NONBLOCK)) == O_DIRECT);
}

TEST_CASE("disk file: direct I/O to guest memory that is aligned to nothing") {
  const TemporaryDirectory directory;
  const std::string image = directory / "image";
  constexpr std::uint32_t kBytes = 600 << 10;  // more than goes through at a time
  make_image(image, kBytes);
  FakeGuest guest(1);
  BlockDevice device({.id = "direct"}, std::make_unique<RawDisk>(open_test_file(
                                           image, {.writable = true, .direct = true})));
  MmioDriver driver(guest, device);
  driver.begin(kEventIdx | kFlushFeature);
  BlockDriver blk(guest, driver);
  const std::uint64_t header = blk.header_address();
  const std::uint64_t status = blk.status_address();
  const std::uint64_t data = blk.data_address() + 1;
  const auto both = [&](bool reads) {
    blk.set_header(reads ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT, 0);
    return blk.status_of({{header, 16, false},
                          {data, 1000, reads},
                          {data + 1000, kBytes - 1000, reads},
                          {status, 1, true}});
  };
  CHECK(both(true) == VIRTIO_BLK_S_OK);
  bool same = true;
  for (std::uint32_t i = 0; i < kBytes; ++i) {
    same = same && blk.data()[i + 1] == pattern_at(i);
  }
  CHECK(same);
  for (std::uint32_t i = 0; i < kBytes; ++i) {
    blk.data()[i + 1] = static_cast<std::byte>(i % 253);
  }
  CHECK(both(false) == VIRTIO_BLK_S_OK);
  CHECK(blk.flush() == VIRTIO_BLK_S_OK);
  CHECK(std::ranges::equal(read_image(image, 0, kBytes), blk.data().subspan(1, kBytes)));
  driver.reset();
}

}  // namespace
}  // namespace vireo
