// SPDX-License-Identifier: Apache-2.0
// A console in some mode, with the reactor served and the user's end in the test's hands.
#pragma once

#include <array>
#include <csignal>
#include <memory>
#include <string>
#include <string_view>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "devices/legacy/console.h"
#include "tests/legacy/recorders.h"
#include "tests/support/catch.h"

namespace vireo {

constexpr std::uint64_t kMillisecond = 1'000'000;

struct NoListener final : ConsoleListener {
  void console_quit() override {}
};

/// A console in some mode, with the user's end of it in the test's hands.
struct Setup {
  explicit Setup(const ConsoleConfig& config) {
    std::signal(SIGPIPE, SIG_IGN);  // as main has it
    reactor = std::move(*Reactor::create({}));
    REQUIRE(reactor->start().has_value());
    console = std::make_unique<Console>(*reactor, listener);
    opened = console->open(config);
    serial = std::make_unique<Serial16550>(interrupt, *console);
    if (opened) {
      out(*serial, 2, 1);  // FIFO on, as the guest's driver has it
      console->start(*serial);
    }
  }
  Setup(const Setup&) = delete;
  Setup& operator=(const Setup&) = delete;
  ~Setup() { console->finish(1000 * kMillisecond); }

  void print(std::string_view text) const {
    for (const char c : text) {
      console->transmit(std::byte(static_cast<unsigned char>(c)));
    }
  }
  /// Serves the reactor for a moment.
  void serve(std::uint64_t for_ns = 2 * kMillisecond) const { reactor->drain(for_ns); }
  /// What the guest has received until `text` is at its end; it reads slowly, one byte each time.
  std::string guest_reads(std::size_t size) {
    std::string text;
    for (int tries = 0; text.size() < size && tries < 5000; ++tries) {
      if ((in(*serial, 5) & 1U) != 0) {
        text += static_cast<char>(in(*serial, 0));
      } else {
        serve();
      }
    }
    return text;
  }
  /// What the user reads from `fd` until there are `size` bytes, the reactor being served.
  std::string user_reads(int fd, std::size_t size) const {
    std::string text;
    for (int tries = 0; text.size() < size && tries < 1000; ++tries) {
      serve();
      text += read_now(fd);
    }
    return text;
  }
  static std::string read_now(int fd) {
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
    std::string text;
    std::array<char, 65536> buffer = {};
    ssize_t count = 0;
    while ((count = ::read(fd, buffer.data(), buffer.size())) > 0) {
      text.append(buffer.data(), static_cast<std::size_t>(count));
    }
    return text;
  }
  static void user_types(int fd, std::string_view text) {
    REQUIRE(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }

  NoListener listener;
  CountedInterrupt interrupt;
  std::unique_ptr<Reactor> reactor;
  std::unique_ptr<Console> console;
  std::unique_ptr<Serial16550> serial;
  Result<> opened;
};

/// What the loop does while nothing happens: it must sleep.
inline void check_idle(const Setup& setup) {
  rusage before = {};
  rusage after = {};
  ::getrusage(RUSAGE_THREAD, &before);
  setup.serve(50 * kMillisecond);
  ::getrusage(RUSAGE_THREAD, &after);
  const auto cpu_us = [](const rusage& usage) {
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1'000'000 + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
  };
  CHECK(cpu_us(after) - cpu_us(before) < 20'000);
  CHECK(after.ru_nvcsw - before.ru_nvcsw < 20);
}

/// A path for a socket, gone with it.
struct SocketPath {
  SocketPath() { ::unlink(path.c_str()); }
  SocketPath(const SocketPath&) = delete;
  SocketPath& operator=(const SocketPath&) = delete;
  ~SocketPath() { ::unlink(path.c_str()); }
  sockaddr_un address() const {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    path.copy(static_cast<char*>(address.sun_path), sizeof(address.sun_path) - 1);
    return address;
  }
  UniqueFd bound(int type = SOCK_STREAM) const {
    UniqueFd socket(::socket(AF_UNIX, type, 0));
    REQUIRE(socket.get() >= 0);
    const sockaddr_un name = address();
    REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0);
    return socket;
  }
  UniqueFd connect() const {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(socket.get() >= 0);
    const sockaddr_un name = address();
    REQUIRE(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0);
    return socket;
  }
  bool exists() const { return ::access(path.c_str(), F_OK) == 0; }

  std::string path = "/tmp/vireo-console-test." + std::to_string(::getpid()) + ".sock";
};

}  // namespace vireo
