// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/console.h"

#include <algorithm>
#include <array>
#include <memory>
#include <string>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/log.h"
#include "tests/legacy/console_setup.h"

namespace vireo {
namespace {

/// A console on a FIFO in place of a file: its reader can be slow, or stop.
struct FifoConsole {
  FifoConsole() {
    path = "/tmp/vireo-console-test." + std::to_string(::getpid());
    ::unlink(path.c_str());
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    reader = UniqueFd(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    reactor = std::move(*Reactor::create({}));
    REQUIRE(reactor->start().has_value());
    console = std::make_unique<Console>(*reactor, listener);
    REQUIRE(console->open({.mode = SerialMode::kFile, .path = path, .append = true}).has_value());
    serial = std::make_unique<Serial16550>(interrupt, *console);
    console->start(*serial);
  }
  ~FifoConsole() { ::unlink(path.c_str()); }

  std::string read_all() {
    std::string text;
    std::array<char, 65536> buffer = {};
    ssize_t count = 0;
    while ((count = ::read(reader.get(), buffer.data(), buffer.size())) > 0) {
      text.append(buffer.data(), static_cast<std::size_t>(count));
    }
    return text;
  }
  void print(std::string_view text) {
    for (const char c : text) {
      console->transmit(std::byte(static_cast<unsigned char>(c)));
    }
  }

  std::string path;
  UniqueFd reader;
  NoListener listener;
  CountedInterrupt interrupt;
  std::unique_ptr<Reactor> reactor;
  std::unique_ptr<Console> console;
  std::unique_ptr<Serial16550> serial;
};

TEST_CASE("console: all bytes are out when it has finished, in order") {
  FifoConsole fifo;
  std::string expected;
  for (int i = 0; i < 2000; ++i) {
    expected += "line " + std::to_string(i) + "\n";
  }
  fifo.print(expected);
  fifo.console->finish(1000 * kMillisecond);
  CHECK(fifo.read_all() == expected);
}

TEST_CASE("console: a reader that stops costs a bounded buffer, and learns what it missed") {
  FifoConsole fifo;
  constexpr std::size_t kSent = 400'000;
  const std::string text(1000, 'x');
  const std::uint64_t began = monotonic_ns();
  for (std::size_t sent = 0; sent < kSent; sent += text.size()) {
    fifo.print(text);
    fifo.reactor->drain(0);
  }
  CHECK(monotonic_ns() - began < 5'000 * kMillisecond);  // never waited for the reader
  std::string got = fifo.read_all();
  fifo.reactor->drain(20 * kMillisecond);
  fifo.print("after\n");
  for (int i = 0; i < 20; ++i) {
    fifo.reactor->drain(5 * kMillisecond);
    got += fifo.read_all();
  }
  fifo.console->finish(1000 * kMillisecond);
  got += fifo.read_all();
  const std::size_t note = got.find('[');
  REQUIRE(note != std::string::npos);
  const std::size_t lost = std::stoul(got.substr(note + 1));
  const auto received = static_cast<std::size_t>(std::count(got.begin(), got.end(), 'x'));
  CHECK(received + lost == kSent);
  CHECK(got.find("bytes lost]") != std::string::npos);
  CHECK(got.ends_with("after\n"));
}

TEST_CASE("console: finish gives up on a stuck reader") {
  FifoConsole fifo;
  fifo.print(std::string(60'000, 'x'));
  fifo.reactor->drain(10 * kMillisecond);
  fifo.print(std::string(60'000, 'x'));  // beyond what the FIFO takes
  fifo.console->finish(50 * kMillisecond);
  CHECK(fifo.read_all().size() >= 60'000);
}

UniqueFd open_slave(const std::string& name) {
  UniqueFd slave(::open(name.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  REQUIRE(slave);
  return slave;
}

TEST_CASE("console: a pty is read and written by the name it tells, raw both ways") {
  Setup setup({.mode = SerialMode::kPty});
  REQUIRE(setup.opened.has_value());
  const std::string name = setup.console->pty_name();
  REQUIRE(name.starts_with("/dev/pts/"));
  const UniqueFd slave = open_slave(name);
  setup.print("out\n");
  CHECK(setup.user_reads(slave.get(), 4) == "out\n");
  Setup::user_types(slave.get(), "in\n\x03\x01x");
  CHECK(setup.guest_reads(6) == "in\n\x03\x01x");
  CHECK(Setup::read_now(slave.get()).empty());  // no echo: that is the guest's to do
}

TEST_CASE("console: a pty without a user keeps what was said, and costs nothing") {
  Setup setup({.mode = SerialMode::kPty});
  REQUIRE(setup.opened.has_value());
  check_idle(setup);
  setup.print("early\n");
  setup.serve(10 * kMillisecond);
  check_idle(setup);
  {
    const UniqueFd slave = open_slave(setup.console->pty_name());
    CHECK(setup.user_reads(slave.get(), 6) == "early\n");
    Setup::user_types(slave.get(), "one");
    CHECK(setup.guest_reads(3) == "one");
  }
  // Gone: no hang-up that is told again and again.
  check_idle(setup);
  setup.print("between\n");
  setup.serve(10 * kMillisecond);
  check_idle(setup);
  const UniqueFd again = open_slave(setup.console->pty_name());
  CHECK(setup.user_reads(again.get(), 8) == "between\n");
  Setup::user_types(again.get(), "two");
  CHECK(setup.guest_reads(3) == "two");
}

TEST_CASE("console: a pty that nobody reads is bounded, and told") {
  Setup setup({.mode = SerialMode::kPty});
  REQUIRE(setup.opened.has_value());
  constexpr std::size_t kSent = 300'000;
  for (std::size_t sent = 0; sent < kSent; sent += 1000) {
    setup.print(std::string(1000, 'x'));
    setup.serve(0);
  }
  check_idle(setup);
  const UniqueFd slave = open_slave(setup.console->pty_name());
  std::string got;
  for (int tries = 0; tries < 1000 && got.find("bytes lost]") == std::string::npos; ++tries) {
    setup.serve();
    got += Setup::read_now(slave.get());
  }
  const auto kept = static_cast<std::size_t>(std::count(got.begin(), got.end(), 'x'));
  const std::size_t note = got.find("\r\n[");
  REQUIRE(note != std::string::npos);
  CHECK(kept + std::stoul(got.substr(note + 3)) == kSent);
  CHECK(kept < 3 * Console::kBufferSize);
}

TEST_CASE("console: sees the kernel's panic, however it is cut") {
  FifoConsole fifo;
  fifo.print("[    1.0] Kernel panic - ");
  CHECK_FALSE(fifo.console->saw_panic());
  fifo.print("not syncing: VFS\n");
  CHECK(fifo.console->saw_panic());
  fifo.console->finish(1000 * kMillisecond);
}

}  // namespace
}  // namespace vireo
