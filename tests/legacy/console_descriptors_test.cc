// SPDX-License-Identifier: Apache-2.0
// Files, pipes and standard streams that somebody else opened.
#include <array>
#include <cerrno>
#include <string>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/log.h"
#include "tests/legacy/console_setup.h"

namespace vireo {
namespace {

TEST_CASE("console: an inherited descriptor of the wrong kind is refused") {
  const SocketPath socket;
  const UniqueFd bound = socket.bound();
  const UniqueFd datagrams(::socket(AF_UNIX, SOCK_DGRAM, 0));
  const UniqueFd read_only(::open("/dev/null", O_RDONLY));
  const UniqueFd packets(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
  const sockaddr_un unnamed = {.sun_family = AF_UNIX, .sun_path = {}};
  REQUIRE(::bind(packets.get(), reinterpret_cast<const sockaddr*>(&unnamed), sizeof(sa_family_t)) ==
          0);
  REQUIRE(::listen(packets.get(), 1) == 0);
  for (const int fd : {bound.get(), datagrams.get(), packets.get(), read_only.get()}) {
    const std::string path = "fd:" + std::to_string(fd);
    const Setup setup({.mode = SerialMode::kUnix, .path = path});
    REQUIRE_FALSE(setup.opened.has_value());
    CHECK(setup.opened.error().code() == ErrorCode::kConfig);
    CHECK(setup.opened.error().message().starts_with("serial.path: " + path + ": "));
  }
  REQUIRE(::listen(bound.get(), 1) == 0);
  for (const int fd : {bound.get(), read_only.get()}) {
    const std::string path = "fd:" + std::to_string(fd);
    const Setup setup({.mode = SerialMode::kFile, .path = path});
    REQUIRE_FALSE(setup.opened.has_value());
    CHECK(setup.opened.error().message().starts_with("serial.path: " + path + ": "));
  }
}

TEST_CASE("console: a file is emptied or kept; an inherited one goes on where its opener was") {
  const std::string path = "/tmp/vireo-console-test." + std::to_string(::getpid()) + ".txt";
  const auto text_of = [&path] {
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    return Setup::read_now(file.get());
  };
  ::unlink(path.c_str());
  const auto print_to = [](const ConsoleConfig& config, std::string_view text) {
    const Setup setup(config);
    REQUIRE(setup.opened.has_value());
    setup.print(text);
  };
  print_to({.mode = SerialMode::kFile, .path = path}, "one\n");
  CHECK(text_of() == "one\n");
  print_to({.mode = SerialMode::kFile, .path = path, .append = true}, "two\n");
  CHECK(text_of() == "one\ntwo\n");
  print_to({.mode = SerialMode::kFile, .path = path}, "three\n");
  CHECK(text_of() == "three\n");
  for (const int flags : {0, O_NONBLOCK}) {
    const UniqueFd file(::open(path.c_str(), O_WRONLY | O_APPEND | flags));
    print_to({.mode = SerialMode::kFile, .path = "fd:" + std::to_string(file.get())}, "four\n");
  }
  CHECK(text_of() == "three\nfour\nfour\n");
  ::unlink(path.c_str());

  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  const Setup unread({.mode = SerialMode::kFile, .path = path});
  REQUIRE_FALSE(unread.opened.has_value());
  CHECK(unread.opened.error().errnum() == ENXIO);
  ::unlink(path.c_str());
}

TEST_CASE("console: a pipe that somebody made non-blocking is waited for, not spun on") {
  std::array<int, 2> ends = {};
  REQUIRE(::pipe2(ends.data(), O_NONBLOCK) == 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const Setup setup({.mode = SerialMode::kFile, .path = "fd:" + std::to_string(writer.get())});
  REQUIRE(setup.opened.has_value());
  std::string sent;
  for (int i = 0; i < 130; ++i) {
    const std::string text = std::to_string(i) + std::string(1000, 'x') + "\n";
    setup.print(text);
    sent += text;
    setup.serve(0);
  }
  check_idle(setup);
  CHECK((::fcntl(writer.get(), F_GETFL) & O_NONBLOCK) != 0);  // its owner's, and as it was
  CHECK(setup.user_reads(reader.get(), sent.size()) == sent);
}

TEST_CASE("console: what is long enough goes out at once, a beginning waits for more") {
  std::array<int, 2> ends = {};
  REQUIRE(::pipe(ends.data()) == 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const Setup setup({.mode = SerialMode::kFile, .path = "fd:" + std::to_string(writer.get())});
  // Under load a millisecond may pass unseen; not each time.
  bool waited = false;
  bool at_once = false;
  for (int tries = 0; tries < 50 && !(waited && at_once); ++tries) {
    const std::uint64_t began = monotonic_ns();
    setup.print("x");
    setup.serve(0);
    const std::string early = Setup::read_now(reader.get());
    setup.print(std::string(1023, 'x'));
    setup.serve(0);
    setup.serve(0);
    const std::string rest = Setup::read_now(reader.get());
    const bool in_time = monotonic_ns() - began < kMillisecond;
    waited = waited || (in_time && early.empty());
    at_once = at_once || (in_time && early.size() + rest.size() == 1024);
    setup.serve(5 * kMillisecond);
    Setup::read_now(reader.get());
  }
  CHECK(waited);
  CHECK(at_once);
}

TEST_CASE("console: a reader of a pipe that goes away ends the output, and nothing else") {
  std::array<int, 2> ends = {};
  REQUIRE(::pipe(ends.data()) == 0);
  UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const Setup setup({.mode = SerialMode::kFile, .path = "fd:" + std::to_string(writer.get())});
  reader.reset();
  setup.print("lost\n");
  setup.serve(10 * kMillisecond);
  setup.print(std::string(200'000, 'x'));
  check_idle(setup);
}

TEST_CASE("console: a full disk loses bytes without spinning") {
  const Setup setup({.mode = SerialMode::kFile, .path = "/dev/full"});
  REQUIRE(setup.opened.has_value());
  setup.print(std::string(5000, 'x'));
  check_idle(setup);
}

TEST_CASE("console: standard input and output that are non-blocking pipes") {
  std::array<int, 2> ends = {};
  REQUIRE(::pipe2(ends.data(), O_NONBLOCK) == 0);
  const UniqueFd to_guest(ends[1]);
  const UniqueFd stdin_end(ends[0]);
  REQUIRE(::pipe2(ends.data(), O_NONBLOCK) == 0);
  const UniqueFd from_guest(ends[0]);
  const UniqueFd stdout_end(ends[1]);
  const UniqueFd real_stdin(::dup(STDIN_FILENO));
  const UniqueFd real_stdout(::dup(STDOUT_FILENO));
  std::string received;
  std::string printed;
  {
    ::dup2(stdin_end.get(), STDIN_FILENO);
    ::dup2(stdout_end.get(), STDOUT_FILENO);
    Setup setup({.mode = SerialMode::kStdio});
    setup.serve();
    Setup::user_types(to_guest.get(), "in\x01x");
    received = setup.guest_reads(4);
    setup.print("out\n");
    printed = setup.user_reads(from_guest.get(), 4);
    ::dup2(real_stdin.get(), STDIN_FILENO);
    ::dup2(real_stdout.get(), STDOUT_FILENO);
  }
  CHECK(received == "in\x01x");  // no terminal, so no escape
  CHECK(printed == "out\n");
}

TEST_CASE("console: the end of its input leaves the output") {
  const UniqueFd real_stdin(::dup(STDIN_FILENO));
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  REQUIRE(null.get() >= 0);
  ::dup2(null.get(), STDIN_FILENO);
  {
    const Setup setup({.mode = SerialMode::kStdio});
    check_idle(setup);
  }
  ::dup2(real_stdin.get(), STDIN_FILENO);
}

TEST_CASE("console: null takes all and keeps nothing") {
  const Setup setup({.mode = SerialMode::kNull});
  setup.print(std::string(200'000, 'x'));
  check_idle(setup);
}

}  // namespace
}  // namespace vireo
