// SPDX-License-Identifier: Apache-2.0
#include "src/base/line_writer.h"

#include <array>
#include <csignal>
#include <cstdlib>
#include <string>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/catch.h"

namespace vireo {
namespace {

using Pair = std::pair<UniqueFd, UniqueFd>;  // where is read, where is written

Pair pipe_pair() {
  std::array<int, 2> ends = {};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Pair socket_pair(int type) {
  std::array<int, 2> ends = {};
  REQUIRE(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends.data()) == 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

/// A terminal: its master reads what is written to the slave.
Pair terminal_pair() {
  UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  REQUIRE(master);
  REQUIRE(::grantpt(master.get()) == 0);
  REQUIRE(::unlockpt(master.get()) == 0);
  std::array<char, 64> name = {};
  REQUIRE(::ptsname_r(master.get(), name.data(), name.size()) == 0);
  UniqueFd slave(::open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  REQUIRE(slave);
  return {std::move(master), std::move(slave)};
}

std::string read_now(int fd) {
  ::fcntl(fd, F_SETFL, O_NONBLOCK);
  std::string text;
  std::array<char, 65536> buffer = {};
  ssize_t count = 0;
  while ((count = ::read(fd, buffer.data(), buffer.size())) > 0) {
    text.append(buffer.data(), static_cast<std::size_t>(count));
  }
  std::erase(text, '\r');  // a terminal's own
  return text;
}

/// Writes lines until they are not taken, then has them read, and writes on. Lines of an odd length
/// fill nothing evenly, so that one is taken in part.
void check_never_waits(const Pair& ends, std::size_t length) {
  ::alarm(20);  // waiting would be for ever
  LineWriter writer;
  writer.attach(ends.second.get());
  CHECK((::fcntl(ends.second.get(), F_GETFL) & O_NONBLOCK) == 0);
  const auto line = [length](int number) {
    std::string text = std::to_string(number);
    text.resize(length, '.');
    return text + "\n";
  };
  std::string expected;
  int number = 0;
  while (writer.write(line(number))) {
    expected += line(number++);
    REQUIRE(number < 100'000);
  }
  REQUIRE(number > 0);
  CHECK_FALSE(writer.write(line(number)));
  std::string got = read_now(ends.first.get());
  CHECK(got.size() <= expected.size());
  CHECK(writer.write("after\n"));
  got += read_now(ends.first.get());
  CHECK(got == expected + "after\n");
  ::alarm(0);
}

TEST_CASE("line writer: a pipe that is full refuses, and the line it took half is finished") {
  check_never_waits(pipe_pair(), 117);
  check_never_waits(pipe_pair(), 7001);
}

TEST_CASE("line writer: the same on sockets") {
  check_never_waits(socket_pair(SOCK_STREAM), 7001);
  check_never_waits(socket_pair(SOCK_SEQPACKET), 300);
}

TEST_CASE("line writer: the same on a terminal") {
  check_never_waits(terminal_pair(), 117);
}

TEST_CASE("line writer: the same where no description of its own is to be had") {
  // A directory in place of /proc/self/fd needs a namespace; a pipe that may not be opened again
  // (another user's) needs another user. Both are had as root only.
  if (::geteuid() != 0) {
    return;
  }
  const Pair ends = pipe_pair();
  REQUIRE(::fchmod(ends.second.get(), 0) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) {
      ::_exit(1);
    }
    LineWriter writer;
    writer.attach(ends.second.get());
    std::string line(7001, 'x');
    line += '\n';
    int taken = 0;
    while (writer.write(line)) {
      ++taken;
    }
    ::_exit(taken >= 8 && taken <= 10 ? 0 : 2);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("line writer: a reader that is gone, a full disk, a closed descriptor refuse") {
  std::signal(SIGPIPE, SIG_IGN);  // as main has it
  LineWriter writer;
  std::array<Pair, 2> pairs = {pipe_pair(), socket_pair(SOCK_STREAM)};
  for (Pair& ends : pairs) {
    ends.first.reset();
    writer.attach(ends.second.get());
    CHECK_FALSE(writer.write("x\n"));
  }
  std::signal(SIGPIPE, SIG_DFL);
  const auto full = open_file("/dev/full", O_WRONLY);
  REQUIRE(full.has_value());
  writer.attach(full->get());
  CHECK_FALSE(writer.write("x\n"));
  writer.attach(-1);
  CHECK_FALSE(writer.write("x\n"));
}

TEST_CASE("line writer: attached elsewhere, it owes nothing to the old place") {
  const Pair old = pipe_pair();
  LineWriter writer;
  writer.attach(old.second.get());
  const std::string line(50'001, 'x');
  REQUIRE(writer.write(line));
  REQUIRE(writer.write(line));  // in part
  const UniqueFd file(::memfd_create("test", MFD_CLOEXEC));
  writer.attach(file.get());
  CHECK(writer.write("new\n"));
  std::array<char, 16> buffer = {};
  CHECK(::pread(file.get(), buffer.data(), buffer.size(), 0) == 4);
}

}  // namespace
}  // namespace vireo
