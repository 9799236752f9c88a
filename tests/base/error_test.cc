// SPDX-License-Identifier: Apache-2.0
#include "src/base/error.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <memory>
#include <string>
#include <utility>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

// Catch has a CHECK too: this one is ours.
static void check_four(int value) {
  CHECK(value == 4);
}

#include "tests/support/catch.h"

namespace vireo {
namespace {

TEST_CASE("error: the text is what was tried, outermost first, and the system's reason") {
  Error error = Error::from_errno(ENOENT, "/x.img").context("disk root").context("opening");
  CHECK(error.message() == "opening: disk root: /x.img: No such file or directory");
  CHECK(error.errnum() == ENOENT);
  CHECK(Error::from_errno(99999, "x").message() == "x: unknown error");
  CHECK(Error(ErrorCode::kConfig, "plain").errnum() == 0);
}

TEST_CASE("error: the errno chooses the code, and a caller may choose another") {
  CHECK(Error::from_errno(EACCES, "").code() == ErrorCode::kPermission);
  CHECK(Error::from_errno(EPERM, "").code() == ErrorCode::kPermission);
  for (const int none : {ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP}) {
    CHECK(Error::from_errno(none, "").code() == ErrorCode::kMissingInput);
  }
  for (const int errnum : {EIO, ENOMEM, ENOSPC, EMFILE, EBUSY, ENODEV}) {
    CHECK(Error::from_errno(errnum, "").code() == ErrorCode::kSystem);
  }
  const Error changed = Error::from_errno(ENOENT, "/dev/kvm").with_code(ErrorCode::kNoKvm);
  CHECK(changed.code() == ErrorCode::kNoKvm);
  CHECK(changed.errnum() == ENOENT);
  CHECK(changed.message() == "/dev/kvm: No such file or directory");
}

TEST_CASE("error: fail and fail_errno make results") {
  const Result<int> failed = fail(ErrorCode::kUsage, "what");
  REQUIRE_FALSE(failed.has_value());
  CHECK(failed.error().code() == ErrorCode::kUsage);
  CHECK(failed.error().message() == "what");
  const Result<> system = fail_errno(EIO, "reading");
  REQUIRE_FALSE(system.has_value());
  CHECK(system.error().errnum() == EIO);
  CHECK(system.error().message() == "reading: Input/output error");
}

/// Counts how often its steps are evaluated.
struct Steps {
  Result<> step(bool good) {
    ++taken;
    return good ? Result<>() : fail(ErrorCode::kBadInput, "step " + std::to_string(taken));
  }
  Result<std::unique_ptr<int>> make(bool good) {
    ++taken;
    if (!good) {
      return fail(ErrorCode::kSystem, "make " + std::to_string(taken));
    }
    return std::make_unique<int>(taken);
  }
  Result<int> run(bool first, bool second, bool third) {
    TRY(step(first));
    TRY_ASSIGN(const std::unique_ptr<int> made, make(second));  // moves what cannot be copied
    std::unique_ptr<int> assigned;
    TRY_ASSIGN(assigned, make(third));
    return *made * 10 + *assigned;
  }
  int taken = 0;
};

TEST_CASE("error: TRY and TRY_ASSIGN evaluate once, and return the first error as it is") {
  Steps good;
  CHECK(good.run(true, true, true) == 23);
  CHECK(good.taken == 3);

  Steps first;
  const Result<int> at_first = first.run(false, true, true);
  REQUIRE_FALSE(at_first.has_value());
  CHECK(at_first.error().message() == "step 1");
  CHECK(at_first.error().code() == ErrorCode::kBadInput);
  CHECK(first.taken == 1);

  Steps second;
  CHECK(second.run(true, false, true).error().message() == "make 2");
  Steps third;
  CHECK(third.run(true, true, false).error().message() == "make 3");
}

TEST_CASE("error: a failed check says where and what, and aborts") {
  std::array<int, 2> ends = {};
  REQUIRE(::pipe(ends.data()) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit no_core = {};
    ::setrlimit(RLIMIT_CORE, &no_core);
    std::signal(SIGABRT, SIG_DFL);  // Catch has a handler of its own
    ::dup2(ends[1], STDERR_FILENO);
    check_four(4);
    check_four(3);
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string text(1000, '\0');
  const ssize_t count = ::read(ends[0], text.data(), text.size());
  ::close(ends[0]);
  text.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGABRT);
  CHECK(text.starts_with("vireo: "));
  CHECK(text.find("error_test.cc:") != std::string::npos);
  CHECK(text.ends_with(": check failed: value == 4\n"));
}

}  // namespace
}  // namespace vireo
