// SPDX-License-Identifier: Apache-2.0
#include "src/base/fd_path.h"

#include <cstdlib>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr const char* kFile = "/proc/self/exe";

/// As a parent left it: open across the exec.
UniqueFd inherited(const char* path, int flags) {
  return UniqueFd(::open(path, flags));
}

std::string path_of(const UniqueFd& fd) {
  return "fd:" + std::to_string(fd.get());
}

ErrorCode refusal(const std::string& path, int access) {
  const Result<UniqueFd> opened = open_inherited(path, access);
  REQUIRE_FALSE(opened);
  CHECK(opened.error().message().starts_with(path + ": "));
  return opened.error().code();
}

/// LISTEN_FDNAMES and its companions, for as long as it lives.
class ListenFds {
 public:
  ListenFds(int count, const std::string& names, pid_t pid = ::getpid()) {
    ::setenv("LISTEN_FDS", std::to_string(count).c_str(), 1);
    ::setenv("LISTEN_FDNAMES", names.c_str(), 1);
    ::setenv("LISTEN_PID", std::to_string(pid).c_str(), 1);
  }
  ListenFds(const ListenFds&) = delete;
  ListenFds& operator=(const ListenFds&) = delete;
  ~ListenFds() {
    ::unsetenv("LISTEN_FDS");
    ::unsetenv("LISTEN_FDNAMES");
    ::unsetenv("LISTEN_PID");
  }
};

TEST_CASE("fd path: a number gives a copy of that descriptor") {
  const UniqueFd original = inherited(kFile, O_RDONLY);
  const Result<UniqueFd> copy = open_inherited(path_of(original), O_RDONLY);
  REQUIRE(copy);
  CHECK(copy->get() != original.get());
  CHECK((::fcntl(copy->get(), F_GETFD) & FD_CLOEXEC) != 0);
  struct stat before = {};
  struct stat after = {};
  REQUIRE(::fstat(original.get(), &before) == 0);
  REQUIRE(::fstat(copy->get(), &after) == 0);
  CHECK(before.st_ino == after.st_ino);
}

TEST_CASE("fd path: a name is looked up in LISTEN_FDNAMES, from descriptor 3 on") {
  const UniqueFd original = inherited(kFile, O_RDONLY);
  REQUIRE(original.get() >= 3);
  std::string names;
  for (int fd = 3; fd < original.get(); ++fd) {
    names += "other:";
  }
  const int count = original.get() - 2;
  {
    const ListenFds listen(count, names + "kernel");
    CHECK(open_inherited("fd:kernel", O_RDONLY));
    CHECK(refusal("fd:kerne", O_RDONLY) == ErrorCode::kMissingInput);
  }
  {
    const ListenFds listen(count - 1, names + "kernel");  // beyond what was handed over
    CHECK(refusal("fd:kernel", O_RDONLY) == ErrorCode::kMissingInput);
  }
  {
    const ListenFds listen(count, names + "kernel", ::getppid());  // meant for somebody else
    CHECK(refusal("fd:kernel", O_RDONLY) == ErrorCode::kMissingInput);
  }
  CHECK(refusal("fd:kernel", O_RDONLY) == ErrorCode::kMissingInput);
}

TEST_CASE("fd path: the descriptor's mode has to allow what is wanted") {
  const UniqueFd reader = inherited("/dev/null", O_RDONLY);
  const UniqueFd writer = inherited("/dev/null", O_WRONLY);
  const UniqueFd both = inherited("/dev/null", O_RDWR);
  const UniqueFd path_only = inherited("/dev/null", O_PATH);
  CHECK(open_inherited(path_of(reader), O_RDONLY));
  CHECK(open_inherited(path_of(writer), O_WRONLY));
  CHECK(refusal(path_of(reader), O_WRONLY) == ErrorCode::kConfig);
  CHECK(refusal(path_of(reader), O_RDWR) == ErrorCode::kConfig);
  CHECK(refusal(path_of(writer), O_RDONLY) == ErrorCode::kBadInput);
  CHECK(refusal(path_of(path_only), O_RDONLY) == ErrorCode::kBadInput);
  for (const int access : {O_RDONLY, O_WRONLY, O_RDWR}) {
    CHECK(open_inherited(path_of(both), access));
  }
}

TEST_CASE("fd path: what nobody handed over is missing, our own descriptors too") {
  const UniqueFd ours = inherited(kFile, O_RDONLY | O_CLOEXEC);
  CHECK(refusal(path_of(ours), O_RDONLY) == ErrorCode::kMissingInput);
  for (const char* const path : {"fd:987", "fd:-1", "fd:", "fd:99999999999", "fd:1x"}) {
    CHECK(refusal(path, O_RDONLY) == ErrorCode::kMissingInput);
  }
}

TEST_CASE("fd path: what no name can look like is known before anything is opened") {
  for (const char* const path : {"fd:", "fd:a:b", "fd:a\nb", "fd:\xc3\xa4"}) {
    CHECK_FALSE(wrong_fd_path(path).empty());
  }
  CHECK_FALSE(wrong_fd_path("fd:" + std::string(256, 'a')).empty());
  CHECK(wrong_fd_path("fd:" + std::string(255, 'a')).empty());
  for (const char* const path : {"fd:3", "fd:log", "a:b", "", "/fd:"}) {
    CHECK(wrong_fd_path(path).empty());
  }
}

TEST_CASE("fd path: open_path takes both kinds, and leaves what was inherited as it is") {
  CHECK(open_path(kFile, O_RDONLY));
  CHECK(open_path("/nonexistent/x", O_RDONLY).error().code() == ErrorCode::kMissingInput);
  const UniqueFd file(::memfd_create("log", 0));
  REQUIRE(::write(file.get(), "kept", 4) == 4);
  const Result<UniqueFd> copy = open_path(path_of(file), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  REQUIRE(copy);
  CHECK(regular_file_size(copy->get()).value() == 4);
}

}  // namespace
}  // namespace vireo
