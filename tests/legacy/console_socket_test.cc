// SPDX-License-Identifier: Apache-2.0
// Clients of a console on a UNIX socket.
#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <thread>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/legacy/console_setup.h"

namespace vireo {
namespace {

/// Whether the console has closed its end.
bool sent_away(const Setup& setup, const UniqueFd& client) {
  for (int tries = 0; tries < 200; ++tries) {
    setup.serve();
    std::byte byte{};
    if (::recv(client.get(), &byte, 1, MSG_DONTWAIT) == 0) {
      return true;
    }
  }
  return false;
}

TEST_CASE("console: a socket keeps what was said for its first client, and serves one at a time") {
  const SocketPath socket;
  Setup setup({.mode = SerialMode::kUnix, .path = socket.path});
  REQUIRE(setup.opened.has_value());
  check_idle(setup);
  setup.print("early\n");
  setup.serve(10 * kMillisecond);
  UniqueFd client = socket.connect();
  CHECK(setup.user_reads(client.get(), 6) == "early\n");
  Setup::user_types(client.get(), "in\x01x");
  CHECK(setup.guest_reads(4) == "in\x01x");
  check_idle(setup);

  const UniqueFd second = socket.connect();
  CHECK(sent_away(setup, second));
  setup.print("still\n");
  CHECK(setup.user_reads(client.get(), 6) == "still\n");

  client.reset();
  setup.serve(10 * kMillisecond);
  check_idle(setup);
  setup.print("between\n");
  setup.serve(10 * kMillisecond);
  const UniqueFd third = socket.connect();
  CHECK(setup.user_reads(third.get(), 8) == "between\n");
  Setup::user_types(third.get(), "back");
  CHECK(setup.guest_reads(4) == "back");
}

TEST_CASE("console: a client that stops reading is told what it missed") {
  const SocketPath socket;
  Setup setup({.mode = SerialMode::kUnix, .path = socket.path});
  const UniqueFd client = socket.connect();
  setup.serve();
  constexpr std::size_t kSent = 1'000'000;
  for (std::size_t sent = 0; sent < kSent; sent += 1000) {
    setup.print(std::string(1000, 'x'));
    setup.serve(0);
  }
  check_idle(setup);
  std::string got;
  for (int tries = 0; tries < 1000 && got.find("bytes lost]") == std::string::npos; ++tries) {
    setup.serve();
    got += Setup::read_now(client.get());
  }
  const auto kept = static_cast<std::size_t>(std::count(got.begin(), got.end(), 'x'));
  const std::size_t note = got.find("\r\n[");
  REQUIRE(note != std::string::npos);
  CHECK(kept + std::stoul(got.substr(note + 3)) == kSent);
}

TEST_CASE("console: a client that goes while it is written to makes room for the next") {
  const SocketPath socket;
  Setup setup({.mode = SerialMode::kUnix, .path = socket.path});
  for (int round = 0; round < 5; ++round) {
    UniqueFd client = socket.connect();
    setup.serve();
    for (int i = 0; i < 500; ++i) {
      setup.print(std::string(1000, 'x'));
      setup.serve(0);
    }
    if (round % 2 == 0) {
      // Half: the end of its input comes while the write waits, and then the write goes on.
      ::shutdown(client.get(), SHUT_WR);
      setup.serve();
      Setup::read_now(client.get());
      setup.serve();
    }
    client.reset();
    setup.serve(5 * kMillisecond);
  }
  const UniqueFd last = socket.connect();
  std::string got = setup.user_reads(last.get(), Console::kBufferSize);
  setup.print("last\n");
  for (int tries = 0; tries < 1000 && !got.ends_with("last\n"); ++tries) {
    setup.serve();
    got += Setup::read_now(last.get());
  }
  CHECK(got.ends_with("last\n"));
}

TEST_CASE("console: what a client did not get is told to the next") {
  const SocketPath socket;
  Setup setup({.mode = SerialMode::kUnix, .path = socket.path});
  UniqueFd client = socket.connect();
  setup.serve();
  // More than a socket takes, less than that and a buffer: nothing is dropped on the way in.
  for (int i = 0; i < 230; ++i) {
    setup.print(std::string(1000, 'x'));
    setup.serve(0);
  }
  client.reset();
  setup.serve(5 * kMillisecond);
  const UniqueFd next = socket.connect();
  CHECK(setup.user_reads(next.get(), 10).find("bytes lost]") != std::string::npos);
}

TEST_CASE("console: clients wait, and the loop sleeps, while no descriptor is free") {
  const SocketPath socket;
  Setup setup({.mode = SerialMode::kUnix, .path = socket.path});
  REQUIRE(setup.opened.has_value());
  const UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  rlimit before = {};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit none = before;
  none.rlim_cur = 3;
  const sockaddr_un name = socket.address();
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const int connected =
      ::connect(client.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name));
  setup.serve(10 * kMillisecond);
  check_idle(setup);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE(connected == 0);
  setup.print("at last\n");
  std::string got;
  for (int tries = 0; tries < 100 && got.empty(); ++tries) {
    setup.serve(10 * kMillisecond);
    got = Setup::read_now(client.get());
  }
  CHECK(got == "at last\n");
}

TEST_CASE("console: a client whose input the guest does not take makes room when it goes") {
  const SocketPath socket;
  Setup setup({.mode = SerialMode::kUnix, .path = socket.path});
  UniqueFd client = socket.connect();
  setup.serve();
  Setup::user_types(client.get(), std::string(1000, 'x'));
  setup.serve(5 * kMillisecond);
  client.reset();
  setup.serve(5 * kMillisecond);
  const UniqueFd next = socket.connect();
  setup.serve();
  setup.print("next\n");
  CHECK(setup.user_reads(next.get(), 5) == "next\n");
}

TEST_CASE("console: a stale socket is replaced; a live one, and a file, stay") {
  const SocketPath socket;
  socket.bound();  // closed again, as by a process that was killed
  REQUIRE(socket.exists());
  {
    Setup setup({.mode = SerialMode::kUnix, .path = socket.path});
    REQUIRE(setup.opened.has_value());
    const Setup rival({.mode = SerialMode::kUnix, .path = socket.path});
    REQUIRE_FALSE(rival.opened.has_value());
    CHECK(rival.opened.error().code() == ErrorCode::kConfig);
    CHECK(rival.opened.error().message() ==
          "serial.path: " + socket.path + " is in use by another process");
    CHECK(socket.exists());
  }
  CHECK_FALSE(socket.exists());
  const UniqueFd file(::open(socket.path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const Setup refused({.mode = SerialMode::kUnix, .path = socket.path});
  REQUIRE_FALSE(refused.opened.has_value());
  CHECK(refused.opened.error().message().find("not a socket") != std::string::npos);
  CHECK(socket.exists());
  const Setup too_long({.mode = SerialMode::kUnix, .path = std::string(108, 'x')});
  CHECK(too_long.opened.error().message().find("at most 107 bytes") != std::string::npos);
}

TEST_CASE("console: clients of an inherited listener, non-blocking or not; it is not removed") {
  const SocketPath socket;
  const UniqueFd listener = socket.bound();
  REQUIRE(::listen(listener.get(), 1) == 0);
  for (const int flags : {0, O_NONBLOCK}) {
    REQUIRE(::fcntl(listener.get(), F_SETFL, flags) == 0);
    Setup setup({.mode = SerialMode::kUnix, .path = "fd:" + std::to_string(listener.get())});
    REQUIRE(setup.opened.has_value());
    check_idle(setup);
    for (int round = 0; round < 2; ++round) {
      const UniqueFd client = socket.connect();
      setup.print("hello\n");
      CHECK(setup.user_reads(client.get(), 6) == "hello\n");
    }
    check_idle(setup);
  }
  CHECK(socket.exists());
}

TEST_CASE("console: a vCPU prints while the reactor writes and the user types") {
  const SocketPath socket;
  Setup setup({.mode = SerialMode::kUnix, .path = socket.path});
  const UniqueFd client = socket.connect();
  setup.serve();
  constexpr std::size_t kSize = 100'000;
  std::string received;
  std::thread vcpu([&setup, &received] {
    for (std::size_t i = 0; i < kSize; ++i) {
      out(*setup.serial, 0, static_cast<unsigned>('a' + i % 26));
      while ((in(*setup.serial, 5) & 1U) != 0) {
        received += static_cast<char>(in(*setup.serial, 0));
      }
      if (i % 1000 == 0) {
        std::this_thread::yield();
      }
    }
  });
  std::string typed;
  std::string got;
  for (int i = 0; i < 100'000 && got.size() < kSize; ++i) {
    if (typed.size() < 2000) {
      // Not byte by byte: a socket holds few hundred messages, however short.
      const std::string text = std::to_string(i) + std::string(100, '.');
      Setup::user_types(client.get(), text);
      typed += text;
    }
    setup.serve(0);
    got += Setup::read_now(client.get());
    if (got.find("bytes lost]") != std::string::npos) {
      break;
    }
  }
  vcpu.join();
  received += setup.guest_reads(typed.size() - received.size());
  CHECK(received == typed);
  std::string expected;
  for (std::size_t i = 0; i < kSize; ++i) {
    expected += static_cast<char>('a' + i % 26);
  }
  const std::size_t note = got.find("\r\n[");
  CHECK(expected.starts_with(got.substr(0, note)));
}

}  // namespace
}  // namespace vireo
