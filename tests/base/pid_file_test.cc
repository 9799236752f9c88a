// SPDX-License-Identifier: Apache-2.0
#include "src/pid_file.h"

#include <array>
#include <cerrno>
#include <fstream>
#include <sstream>
#include <string>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/catch.h"

namespace vireo {
namespace {

/// A path of its own, gone with it.
struct Path {
  Path() { ::unlink(text.c_str()); }
  Path(const Path&) = delete;
  Path& operator=(const Path&) = delete;
  ~Path() { ::unlink(text.c_str()); }
  std::string content() const {
    std::ifstream file(text);
    std::ostringstream whole;
    whole << file.rdbuf();
    return whole.str();
  }
  bool exists() const { return ::access(text.c_str(), F_OK) == 0; }

  std::string text = "/tmp/vireo-pid-file-test." + std::to_string(::getpid());
};

const std::string kOwnPid = std::to_string(::getpid()) + "\n";

TEST_CASE("pid file: holds the pid while it lives, and is gone afterwards") {
  const Path path;
  {
    PidFile file;
    REQUIRE(file.create(path.text).has_value());
    CHECK(path.content() == kOwnPid);
    PidFile second;
    const Result<> held = second.create(path.text);
    REQUIRE_FALSE(held.has_value());
    CHECK(held.error().code() == ErrorCode::kSystem);
    CHECK(held.error().message() == "process.pid_file: " + path.text +
                                        " belongs to the running process " +
                                        std::to_string(::getpid()));
  }
  CHECK_FALSE(path.exists());
}

TEST_CASE("pid file: one that a killed process left is replaced, all of it") {
  const Path path;
  std::ofstream(path.text) << "1234567890123\n";
  PidFile file;
  REQUIRE(file.create(path.text).has_value());
  CHECK(path.content() == kOwnPid);
}

TEST_CASE("pid file: one that was refused is left as it was") {
  const Path path;
  const UniqueFd other(::open(path.text.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(::write(other.get(), "77\n", 3) == 3);
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  REQUIRE(::fcntl(other.get(), F_OFD_SETLK, &lock) == 0);
  {
    PidFile file;
    CHECK(file.create(path.text).error().message().ends_with("the running process 77"));
  }
  CHECK(path.content() == "77\n");
}

TEST_CASE("pid file: links, FIFOs and directories are refused") {
  const Path path;
  PidFile file;
  CHECK_FALSE(file.create("/tmp").has_value());
  REQUIRE(::symlink("/tmp/vireo-no-such-file", path.text.c_str()) == 0);
  CHECK(file.create(path.text).error().errnum() == ELOOP);
  ::unlink(path.text.c_str());
  REQUIRE(::mkfifo(path.text.c_str(), 0600) == 0);
  const Result<> fifo = file.create(path.text);
  REQUIRE_FALSE(fifo.has_value());
  CHECK(fifo.error().message() == "process.pid_file: " + path.text + ": not a regular file");
  CHECK(path.exists());
}

TEST_CASE("pid file: processes that start and end at once never share one") {
  const Path path;
  std::array<pid_t, 6> children = {};
  for (pid_t& child : children) {
    child = ::fork();
    if (child == 0) {
      for (int i = 0; i < 300; ++i) {
        PidFile file;
        // Held: it is ours by path and by content, or another's.
        if (file.create(path.text) && path.content() != std::to_string(::getpid()) + "\n") {
          ::_exit(1);
        }
      }
      ::_exit(0);
    }
  }
  for (const pid_t child : children) {
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
  CHECK_FALSE(path.exists());
}

TEST_CASE("pid file: an inherited one is written over, and emptied at the end") {
  const Path path;
  const UniqueFd opened(::open(path.text.c_str(), O_RDWR | O_CREAT, 0600));
  REQUIRE(::write(opened.get(), "something longer\n", 17) == 17);
  const std::string inherited = "fd:" + std::to_string(opened.get());
  {
    PidFile file;
    REQUIRE(file.create(inherited).has_value());
    CHECK(path.content() == kOwnPid);
    PidFile other;  // by path: another description, which finds the lock
    CHECK(other.create(path.text).error().code() == ErrorCode::kSystem);
  }
  CHECK(path.exists());
  CHECK(path.content().empty());
}

TEST_CASE("pid file: an inherited descriptor of the wrong type or mode is refused") {
  const Path path;
  const UniqueFd null(::open("/dev/null", O_RDWR));
  const UniqueFd read_only(::open("/proc/self/exe", O_RDONLY));
  for (const int fd : {null.get(), read_only.get()}) {
    const std::string inherited = "fd:" + std::to_string(fd);
    PidFile file;
    const Result<> refused = file.create(inherited);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code() == ErrorCode::kConfig);
    CHECK(refused.error().message().starts_with("process.pid_file: " + inherited + ": "));
  }
}

}  // namespace
}  // namespace vireo
