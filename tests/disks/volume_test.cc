// SPDX-License-Identifier: Apache-2.0
#include "src/volume.h"

#include <array>
#include <csignal>
#include <functional>
#include <vector>

#include <sys/mount.h>
#include <sys/wait.h>

#include "tests/disks/directory.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

struct stat status_of(const std::string& path) {
  struct stat status = {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  return status;
}

std::string refusal(const VolumeConfig& volume, ErrorCode code,
                    std::span<const std::string> directories = program_directories()) {
  const Result<> made = make_volume(volume, directories);
  REQUIRE_FALSE(made);
  INFO(made.error().message());
  CHECK(made.error().code() == code);
  CHECK(made.error().message().find('\n') == std::string::npos);
  return made.error().message();
}

void check_made(const VolumeConfig& volume) {
  const Result<> made = make_volume(volume);
  INFO((made ? "" : made.error().message()));
  REQUIRE(made);
  const auto [said, ended] = shell("PATH=$PATH:/sbin:/usr/sbin e2fsck -fn " + volume.path);
  INFO(said);
  CHECK(ended == 0);
  CHECK(status_of(volume.path).st_size == static_cast<off_t>(volume.size_bytes));
}

std::string header_of(const std::string& path) {
  return shell("PATH=$PATH:/sbin:/usr/sbin dumpe2fs -h " + path).first;
}

TEST_CASE("volume: it is made sparse, with a clean ext4, and nothing beside it") {
  const Directory directory;
  const VolumeConfig volume{.id = "data", .path = directory / "d.img", .size_bytes = 1024 * kMiB};
  check_made(volume);
  const struct stat status = status_of(volume.path);
  CHECK(status.st_blocks * 512 < static_cast<off_t>(4 * kMiB));
  CHECK((status.st_mode & 07777) == 0600);
  const std::string header = header_of(volume.path);
  INFO(header);
  CHECK(header.find("Filesystem volume name:   data\n") != std::string::npos);
  CHECK(header.find("has_journal") != std::string::npos);
  CHECK(header.find("extent") != std::string::npos);
  CHECK(directory.names() == std::set<std::string>{"d.img"});
}

TEST_CASE("volume: the smallest there may be; a long id is cut to what a label has") {
  const Directory directory;
  const VolumeConfig volume{
      .id = "a-volume-of-20-bytes", .path = directory / "d.img", .size_bytes = 16 * kMiB};
  check_made(volume);
  CHECK(header_of(volume.path).find("volume name:   a-volume-of-20-b\n") != std::string::npos);
}

TEST_CASE("volume: what was made is kept, whatever it holds") {
  const Directory directory;
  const VolumeConfig volume{.id = "data", .path = directory / "d.img", .size_bytes = 16 * kMiB};
  check_made(volume);
  const std::string before = content_of(volume.path);
  const struct stat status = status_of(volume.path);
  // Without mke2fs too: nothing is to be made.
  REQUIRE(make_volume(volume, {}));
  CHECK(content_of(volume.path) == before);
  CHECK(status_of(volume.path).st_ino == status.st_ino);
  const std::string foreign(16 * kMiB, 'x');
  directory.write("foreign", foreign);
  REQUIRE(make_volume({.id = "a", .path = directory / "foreign", .size_bytes = 16 * kMiB}));
  CHECK(content_of(directory / "foreign") == foreign);
}

TEST_CASE("volume: an empty file is filled, keeps its owner and mode, and links stay links") {
  const Directory directory;
  const VolumeConfig volume{.id = "data", .path = directory / "d.img", .size_bytes = 16 * kMiB};
  directory.write("d.img", "", 0640);
  const bool root = ::geteuid() == 0;
  REQUIRE((!root || ::chown(volume.path.c_str(), 65534, 65533) == 0));
  check_made(volume);
  CHECK((status_of(volume.path).st_mode & 07777) == 0640);
  CHECK((!root || status_of(volume.path).st_uid == 65534));
  CHECK((!root || status_of(volume.path).st_gid == 65533));

  directory.write("target", "");
  REQUIRE(::symlink("target", (directory / "link").c_str()) == 0);
  check_made({.id = "data", .path = directory / "link", .size_bytes = 16 * kMiB});
  CHECK(std::filesystem::is_symlink(directory / "link"));
  CHECK(directory.names() == std::set<std::string>{"d.img", "link", "target"});
}

TEST_CASE("volume: a relative path is one of the working directory") {
  const Directory directory;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(directory.path);
  check_made({.id = "data", .path = "d.img", .size_bytes = 16 * kMiB});
  std::filesystem::current_path(before);
  CHECK(directory.names() == std::set<std::string>{"d.img"});
}

TEST_CASE("volume: another size is refused with the remedy, and nothing is changed") {
  const Directory directory;
  VolumeConfig volume{.id = "data", .path = directory / "d.img", .size_bytes = 16 * kMiB};
  check_made(volume);
  const std::string before = content_of(volume.path);
  volume.size_bytes = 32 * kMiB;
  const std::string larger = refusal(volume, ErrorCode::kConfig);
  CHECK(larger.starts_with("volume \"data\": size: " + volume.path + " was made with 16M;"));
  CHECK(larger.find("truncate -s 32M") != std::string::npos);
  directory.write("odd", std::string(33 * kMiB + 1, 'x'));
  volume.path = directory / "odd";
  const std::string smaller = refusal(volume, ErrorCode::kConfig);
  CHECK(smaller.find("was made with 34603009 bytes; it never shrinks") != std::string::npos);
  CHECK(content_of(directory / "d.img") == before);
}

TEST_CASE("volume: what can be no volume is refused by name") {
  const Directory directory;
  const auto at = [](const std::string& path) {
    return VolumeConfig{.id = "data", .path = path, .size_bytes = 16 * kMiB};
  };
  CHECK(refusal(at(directory.path), ErrorCode::kConfig).find("regular file") != std::string::npos);
  CHECK(refusal(at("/dev/null"), ErrorCode::kConfig).find("regular file") != std::string::npos);
  CHECK(refusal(at(directory / "none/d.img"), ErrorCode::kMissingInput).find("none/d.img") !=
        std::string::npos);
  REQUIRE(::symlink("nothing", (directory / "link").c_str()) == 0);
  CHECK(refusal(at(directory / "link"), ErrorCode::kMissingInput).find("link to nothing") !=
        std::string::npos);
  CHECK(directory.names() == std::set<std::string>{"link"});
}

TEST_CASE("volume: without mke2fs, or where it fails, one line says so, and nothing is left") {
  const Directory programs;
  const Directory directory;
  const VolumeConfig volume{.id = "data", .path = directory / "d.img", .size_bytes = 16 * kMiB};
  const std::array<std::string, 1> search = {programs.path};
  CHECK(refusal(volume, ErrorCode::kSystem, search) ==
        "volume \"data\": mke2fs is not there, which formats new volumes; install the package "
        "e2fsprogs");
  const auto failing = [&](const std::string& script) {
    programs.write("mke2fs", "#!/bin/sh\n" + script, 0755);
    return refusal(volume, ErrorCode::kSystem, search);
  };
  CHECK(failing("echo out; echo first >&2; echo 'no\tgood' >&2; echo >&2; exit 3") ==
        "volume \"data\": mke2fs failed (3): no\\x09good");
  CHECK(failing("exit 1") == "volume \"data\": mke2fs failed (1)");
  CHECK(failing("kill -9 $$") == "volume \"data\": mke2fs ended by signal 9");
  CHECK(failing("yes | head -c 100000 >&2; echo end >&2; exit 1").ends_with("failed (1): end"));
  programs.write("mke2fs", "no program", 0755);
  CHECK(refusal(volume, ErrorCode::kSystem, search).starts_with("volume \"data\": "));
  CHECK(directory.names().empty());
  // An empty file that was there stays.
  directory.write("d.img", "");
  failing("exit 1");
  CHECK(std::filesystem::file_size(volume.path) == 0);
  CHECK(directory.names() == std::set<std::string>{"d.img"});
}

TEST_CASE("volume: the end of children is heard where the starter of vireo had it ignored") {
  const Directory directory;
  const auto before = std::signal(SIGCHLD, SIG_IGN);
  const Result<> made =
      make_volume({.id = "data", .path = directory / "d.img", .size_bytes = 16 * kMiB});
  CHECK(std::signal(SIGCHLD, before) == SIG_IGN);
  CHECK(made);
}

TEST_CASE("volume: on a full file system it is refused, and nothing is left") {
  if (::geteuid() != 0) {
    WARN("wants root, for a file system of its own");
    return;
  }
  const Directory directory;
  REQUIRE(::mount("none", directory.path.c_str(), "tmpfs", 0, "size=64k") == 0);
  const std::string message = refusal(
      {.id = "data", .path = directory / "d.img", .size_bytes = 64 * kMiB}, ErrorCode::kSystem);
  const auto left = directory.names();
  CHECK(::umount(directory.path.c_str()) == 0);
  CHECK(left.empty());
  CHECK(message.starts_with("volume \"data\": mke2fs failed (1): "));
}

/// Runs `work` in children, all at once; whether all ended well.
bool all_at_once(int count, const std::function<bool()>& work) {
  std::vector<pid_t> children;
  for (int i = 0; i < count; ++i) {
    children.push_back(::fork());
    if (children.back() == 0) {
      ::_exit(work() ? 0 : 1);
    }
  }
  bool well = true;
  for (const pid_t child : children) {
    int status = 0;
    well = ::waitpid(child, &status, 0) == child && status == 0 && well;
  }
  return well;
}

TEST_CASE("volume: of several processes one makes it, and the others use that") {
  for (const bool empty : {false, true}) {
    for (int round = 0; round < 5; ++round) {
      const Directory directory;
      const VolumeConfig volume{.id = "data", .path = directory / "d.img", .size_bytes = 16 * kMiB};
      if (empty) {
        directory.write("d.img", "");
      }
      // Each leaves a link to what it got: all are to be the same file.
      CHECK(all_at_once(4, [&] {
        return make_volume(volume) &&
               ::link(volume.path.c_str(), (directory / std::to_string(::getpid())).c_str()) == 0;
      }));
      CHECK(status_of(volume.path).st_nlink == 5);
      CHECK(directory.names().size() == 5);
    }
  }
}

TEST_CASE("volume: a process that is killed while it makes one leaves nothing") {
  const Directory programs;
  const Directory directory;
  programs.write("mke2fs", "#!/bin/sh\ntouch " + (programs / "runs") + "\nsleep 1\n", 0755);
  const std::array<std::string, 1> search = {programs.path};
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const VolumeConfig volume{.id = "data", .path = directory / "d.img", .size_bytes = 16 * kMiB};
    ::_exit(make_volume(volume, search) ? 0 : 1);
  }
  while (::access((programs / "runs").c_str(), F_OK) != 0) {
    ::usleep(1000);
  }
  REQUIRE(::kill(child, SIGKILL) == 0);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  CHECK(directory.names().empty());
}

}  // namespace
}  // namespace vireo
