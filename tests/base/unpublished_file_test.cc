// SPDX-License-Identifier: Apache-2.0
#include "src/base/unpublished_file.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/disks/directory.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

using Names = std::set<std::string>;

UnpublishedFile made(const std::string& path, const std::string& text) {
  Result<UnpublishedFile> file = UnpublishedFile::create(path, 0600);
  REQUIRE(file);
  REQUIRE(write_full(file->fd(), std::as_bytes(std::span(text))));
  return std::move(*file);
}

std::string temporary_of(const std::string& path) {
  return path + "." + std::to_string(::getpid()) + ".tmp";
}

TEST_CASE("unpublished file: has no name until it is given one, and is gone where it is not") {
  const Directory directory;
  {
    const UnpublishedFile file = made(directory / "file", "text");
    CHECK(directory.names().empty());
  }
  CHECK(directory.names().empty());
  UnpublishedFile file = made(directory / "file", "text");
  REQUIRE(file.replace());
  CHECK(directory.names() == Names{"file"});
  CHECK(content_of(directory / "file") == "text");
  struct stat status = {};
  REQUIRE(::stat((directory / "file").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777U) == 0600);
}

TEST_CASE("unpublished file: in place of another one, which who has it open keeps") {
  const Directory directory;
  directory.write("file", "before", 0644);
  const UniqueFd open(::open((directory / "file").c_str(), O_RDONLY | O_CLOEXEC));
  UnpublishedFile file = made(directory / "file", "after");
  CHECK(content_of(directory / "file") == "before");
  REQUIRE(file.replace());
  CHECK(content_of(directory / "file") == "after");
  CHECK(directory.names() == Names{"file"});
  std::array<char, 6> text = {};
  REQUIRE(::read(open.get(), text.data(), text.size()) == 6);
  CHECK(std::string(text.begin(), text.end()) == "before");
  // What is written to it goes on being the file's.
  REQUIRE(write_full(file.fd(), std::as_bytes(std::span(" all", 4))));
  CHECK(content_of(directory / "file") == "after all");
}

TEST_CASE("unpublished file: a link is replaced, not what it leads to") {
  const Directory directory;
  directory.write("other", "other");
  std::filesystem::create_symlink("other", directory / "file");
  REQUIRE(made(directory / "file", "text").replace());
  CHECK_FALSE(std::filesystem::is_symlink(directory / "file"));
  CHECK(content_of(directory / "other") == "other");
  CHECK(directory.names() == Names{"file", "other"});
}

TEST_CASE("unpublished file: what a killed process has left goes with the next") {
  const Directory directory;
  UnpublishedFile file = made(directory / "file", "text");
  directory.write(".file.vireo", "left");
  REQUIRE(file.replace());
  CHECK(content_of(directory / "file") == "text");
  CHECK(directory.names() == Names{"file"});
}

TEST_CASE("unpublished file: where it cannot have the name, nothing is left") {
  const Directory directory;
  std::filesystem::create_directory(directory / "file");
  const Result<> replaced = made(directory / "file", "text").replace();
  REQUIRE_FALSE(replaced);
  CHECK(replaced.error().errnum() == EISDIR);
  CHECK(replaced.error().message().starts_with("file: "));
  CHECK(directory.names() == Names{"file"});
  CHECK(std::filesystem::is_directory(directory / "file"));

  UnpublishedFile file = made(directory / "file/inner", "text");
  std::filesystem::remove(directory / "file");
  CHECK(file.replace().error().errnum() == ENOENT);
  CHECK(directory.names().empty());
  CHECK(UnpublishedFile::create(directory / "none/file", 0600).error().code() ==
        ErrorCode::kMissingInput);
}

TEST_CASE("unpublished file: goes where its directory has gone") {
  const Directory directory;
  std::filesystem::create_directory(directory / "one");
  UnpublishedFile file = made(directory / "one/file", "text");
  std::filesystem::rename(directory / "one", directory / "two");
  REQUIRE(file.replace());
  CHECK(content_of(directory / "two/file") == "text");
  CHECK(directory.names() == Names{"two"});
}

TEST_CASE("unpublished file: may have the longest name that there is") {
  const Directory directory;
  const std::string name(255, 'n');
  REQUIRE(made(directory / name, "text").replace());
  REQUIRE(made(directory / name, "again").replace());
  CHECK(content_of(directory / name) == "again");
  CHECK(directory.names() == Names{name});
}

TEST_CASE("unpublished file: many replace the same one at a time") {
  const Directory directory;
  const std::string name(201, 'n');
  std::vector<std::jthread> threads;
  std::atomic<int> failed = 0;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        Result<UnpublishedFile> file = UnpublishedFile::create(directory / name, 0600);
        if (!file || !write_full(file->fd(), std::as_bytes(std::span("text", 4))) ||
            !file->replace() || content_of(directory / name) != "text") {
          ++failed;
        }
      }
    });
  }
  threads.clear();
  CHECK(failed == 0);
  CHECK(directory.names() == Names{name});
}

TEST_CASE("unpublished file: published where the name is free") {
  const Directory directory;
  UnpublishedFile first = made(directory / "file", "first");
  UnpublishedFile second = made(directory / "file", "second");
  CHECK(first.publish().value());
  CHECK_FALSE(second.publish().value());
  CHECK(content_of(directory / "file") == "first");
  CHECK(directory.names() == Names{"file"});
  REQUIRE(second.remove_target());
  CHECK(directory.names().empty());
  CHECK(second.remove_target().error().errnum() == ENOENT);
  CHECK(second.publish().value());
  CHECK(content_of(directory / "file") == "second");
}

/// From here on as on a file system that knows no files without a name.
bool forget_tmpfile() {
  constexpr std::uint32_t kTmpfileAlone = O_TMPFILE & ~O_DIRECTORY;
  std::array<sock_filter, 6> code = {
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, kTmpfileAlone, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program = {.len = code.size(), .filter = code.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/// What a body says in a process of its own that knows none.
template <typename Body>
bool without_tmpfile(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(forget_tmpfile() && body() ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status == 0;
}

TEST_CASE("unpublished file: has a name of its own meanwhile where there is no other way") {
  const Directory directory;
  const std::string path = directory / "file";
  CHECK(without_tmpfile([&] {
    const Result<UnpublishedFile> file = UnpublishedFile::create(path, 0600);
    return file && directory.names() == Names{temporary_of("file")};
  }));
  CHECK(directory.names().empty());  // by the object's end
  for (const std::string text : {"one", "another"}) {
    CHECK(without_tmpfile([&] {
      Result<UnpublishedFile> file = UnpublishedFile::create(path, 0600);
      return file && write_full(file->fd(), std::as_bytes(std::span(text))) && file->replace();
    }));
    CHECK(content_of(path) == text);
    CHECK(directory.names() == Names{"file"});
  }
  CHECK(without_tmpfile([&] {
    Result<UnpublishedFile> file = UnpublishedFile::create(path, 0600);
    const Result<bool> taken = file->publish();
    return taken && !*taken && file->remove_target() && file->publish().value();
  }));
  CHECK(content_of(path).empty());
  CHECK(directory.names() == Names{"file"});
}

}  // namespace
}  // namespace vireo
