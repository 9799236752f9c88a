// SPDX-License-Identifier: Apache-2.0
// The console on a terminal of the process's own: a session with a controlling pseudo-terminal, in
// a child, with this side as the user.
#include "devices/legacy/terminal.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "devices/legacy/console.h"
#include "tests/legacy/recorders.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMillisecond = 1'000'000;

/// A child whose controlling terminal this is the other end of.
class Session {
 public:
  explicit Session(const std::function<int()>& work) {
    master_ = UniqueFd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
    std::array<char, 64> name = {};
    REQUIRE(::grantpt(master_.get()) == 0);
    REQUIRE(::unlockpt(master_.get()) == 0);
    REQUIRE(::ptsname_r(master_.get(), name.data(), name.size()) == 0);
    // Held open here too, or the terminal would lose its settings with the child.
    slave_ = UniqueFd(::open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    REQUIRE(slave_);
    before_ = settings();
    child_ = ::fork();
    REQUIRE(child_ >= 0);
    if (child_ == 0) {
      ::alarm(20);
      ::setsid();
      ::ioctl(slave_.get(), TIOCSCTTY, 0);
      ::dup2(slave_.get(), STDIN_FILENO);
      ::dup2(slave_.get(), STDOUT_FILENO);
      const rlimit no_core = {};
      ::setrlimit(RLIMIT_CORE, &no_core);
      for (const int signal : {SIGABRT, SIGSEGV, SIGHUP, SIGILL, SIGFPE, SIGTERM, SIGINT}) {
        std::signal(signal, SIG_DFL);  // Catch and sanitizers have handlers of their own
      }
      std::exit(work());
    }
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
  }

  termios settings() const {
    termios now = {};
    REQUIRE(::tcgetattr(slave_.get(), &now) == 0);
    return now;
  }
  bool raw() const { return (settings().c_lflag & (ICANON | ECHO | ISIG)) == 0; }
  bool restored() const {
    const termios now = settings();
    return now.c_lflag == before_.c_lflag && now.c_iflag == before_.c_iflag &&
           now.c_oflag == before_.c_oflag;
  }
  const termios& before() const { return before_; }
  /// As a shell does when its job has stopped.
  void take_back() { REQUIRE(::tcsetattr(slave_.get(), TCSANOW, &before_) == 0); }

  /// Reads what the child writes until `text` has come; all that it wrote so far.
  std::string read_until(const std::string& text, int wait_ms = 5000) {
    pollfd request = {.fd = master_.get(), .events = POLLIN, .revents = 0};
    std::array<char, 256> buffer = {};
    while (output_.find(text) == std::string::npos && ::poll(&request, 1, wait_ms) == 1) {
      const ssize_t count = ::read(master_.get(), buffer.data(), buffer.size());
      if (count <= 0) {
        break;
      }
      output_.append(buffer.data(), static_cast<std::size_t>(count));
    }
    return output_;
  }
  void type(std::string_view keys) {
    REQUIRE(::write(master_.get(), keys.data(), keys.size()) == static_cast<ssize_t>(keys.size()));
  }
  void signal(int number) { ::kill(child_, number); }
  /// Waits for the child's end: its exit status, or 1000 and its signal.
  int wait() {
    int status = 0;
    const pid_t waited = ::waitpid(child_, &status, 0);
    child_ = -1;
    REQUIRE(waited > 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

 private:
  UniqueFd master_;
  UniqueFd slave_;
  termios before_ = {};
  pid_t child_ = -1;
  std::string output_;
};

void say(std::string_view text) {
  [[maybe_unused]] const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
}

/// Raw mode, said to the other side, and then `then`.
std::function<int()> raw_and(const std::function<int()>& then) {
  return [then] {
    if (!owns_terminal(STDIN_FILENO) || !make_terminal_raw(STDIN_FILENO)) {
      return 99;
    }
    say("raw");
    return then();
  };
}

int wait_for_signals() {
  for (;;) {
    ::pause();
  }
}

TEST_CASE("terminal: raw mode leaves the output as it was, and restore undoes it") {
  Session session(raw_and([] {
    std::array<char, 1> key = {};
    if (::read(STDIN_FILENO, key.data(), 1) != 1) {
      return 1;
    }
    restore_terminal();
    restore_terminal();
    say("restored");
    return ::read(STDIN_FILENO, key.data(), 1) == 1 ? 7 : 2;
  }));
  session.read_until("raw");
  CHECK(session.raw());
  CHECK(session.settings().c_oflag == session.before().c_oflag);
  session.type("x");  // no line end: raw mode does not wait for one
  session.read_until("restored");
  CHECK(session.restored());
  session.type("\n");
  CHECK(session.wait() == 7);
}

TEST_CASE("terminal: restored at exit, abort and fatal signals, which stay what they are") {
  struct Ending {
    std::function<int()> work;
    int status;
  };
  const std::array endings = {
      Ending{[] { return 5; }, 5},
      Ending{[]() -> int { std::abort(); }, 1000 + SIGABRT},
      Ending{[] { return ::raise(SIGSEGV); }, 1000 + SIGSEGV},
      Ending{[] { return ::raise(SIGHUP); }, 1000 + SIGHUP},
      Ending{[] { return ::raise(SIGQUIT); }, 1000 + SIGQUIT},
  };
  for (const Ending& ending : endings) {
    Session session([&ending] {
      // A job in the background is started with some of them ignored.
      for (const int number : {SIGHUP, SIGQUIT}) {
        std::signal(number, SIG_DFL);
      }
      return raw_and([&ending] {
        std::array<char, 1> key = {};
        return ::read(STDIN_FILENO, key.data(), 1) == 1 ? ending.work() : 1;
      })();
    });
    session.read_until("raw");
    CHECK(session.raw());
    session.type("x");
    CHECK(session.wait() == ending.status);
    CHECK(session.restored());
  }
}

TEST_CASE("terminal: a signal handler that is there stays") {
  Session session([] {
    std::signal(SIGHUP, [](int) { say("ours"); });
    return raw_and(wait_for_signals)();
  });
  session.read_until("raw");
  session.signal(SIGHUP);
  CHECK(session.read_until("ours").ends_with("ours"));
  CHECK(session.raw());
}

TEST_CASE("terminal: raw once more when the process goes on after a stop") {
  Session session(raw_and([] {
    std::array<char, 1> key = {};
    while (::read(STDIN_FILENO, key.data(), 1) < 0 && errno == EINTR) {
    }
    renew_raw_terminal();
    say("again");
    while (::read(STDIN_FILENO, key.data(), 1) < 0 && errno == EINTR) {
    }
    restore_terminal();
    renew_raw_terminal();  // ours no more
    return 0;
  }));
  session.read_until("raw");
  CHECK(session.raw());
  session.take_back();
  CHECK(session.restored());
  session.type("\n");  // all of a line, or the rest of it would be the next key
  session.read_until("again");
  CHECK(session.raw());
  session.type("x");
  CHECK(session.wait() == 0);
  CHECK(session.restored());
}

TEST_CASE("terminal: what is none is refused, and not owned") {
  const auto null = open_file("/dev/null", O_RDWR);
  REQUIRE(null.has_value());
  CHECK_FALSE(owns_terminal(null->get()));
  CHECK(make_terminal_raw(null->get()).error().errnum() == ENOTTY);
  CHECK(make_pty_raw(null->get()).error().errnum() == ENOTTY);
  const UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  CHECK_FALSE(owns_terminal(master.get()));  // a terminal, of another session
}

/// The console on stdio with a serial port whose guest echoes nothing and reads all.
int run_console() {
  struct Quit final : ConsoleListener {
    void console_quit() override { reactor->stop(); }
    Reactor* reactor = nullptr;
  } listener;
  auto reactor = Reactor::create({});
  if (!reactor || !(*reactor)->start()) {
    return 1;
  }
  listener.reactor = reactor->get();
  CountedInterrupt interrupt;
  int status = 2;
  {
    Console console(**reactor, listener);
    if (!console.open({.mode = SerialMode::kStdio})) {
      return 3;
    }
    Serial16550 serial(interrupt, console);
    out(serial, 2, 1);  // FIFO on
    console.start(serial);
    for (const char c : std::string_view("ready\n")) {
      console.transmit(std::byte(static_cast<unsigned char>(c)));
    }
    status = (*reactor)->run() ? 0 : 4;
    while ((in(serial, 5) & 1U) != 0) {
      const std::byte byte{static_cast<unsigned char>(in(serial, 0))};
      console.transmit(byte == std::byte{1} ? std::byte{'^'} : byte);
    }
    console.finish(1000 * kMillisecond);
  }
  return status;
}

TEST_CASE("console: Ctrl-A x leaves, Ctrl-A Ctrl-A is one Ctrl-A, Ctrl-C is the guest's") {
  Session session(run_console);
  CHECK(session.read_until("ready\r\n") == "ready\r\n");
  CHECK(session.raw());
  session.type(
      "a\x01\x01"
      "b\x01"
      "c\x03\x01x");
  CHECK(session.wait() == 0);
  CHECK(session.restored());
  CHECK(session.read_until("no more", 0) == "ready\r\na^b^c\x03");
}

/// The console on a terminal whose user reads nothing.
int print_to_stopped_terminal() {
  struct Quit final : ConsoleListener {
    void console_quit() override {}
  } listener;
  auto reactor = Reactor::create({});
  if (!reactor || !(*reactor)->start()) {
    return 1;
  }
  Console console(**reactor, listener);
  if (!console.open({.mode = SerialMode::kStdio})) {
    return 2;
  }
  CountedInterrupt interrupt;
  Serial16550 serial(interrupt, console);
  console.start(serial);
  for (int i = 0; i < 300'000; ++i) {
    console.transmit(std::byte{'x'});
    if (i % 1000 == 0) {
      (*reactor)->drain(0);  // a reactor that waits for its user never returns from here
    }
  }
  (*reactor)->drain(20 * kMillisecond);
  console.finish(50 * kMillisecond);
  return 7;
}

TEST_CASE("console: a terminal whose user has stopped reading stops neither the loop nor the end") {
  Session session(print_to_stopped_terminal);
  CHECK(session.wait() == 7);
  CHECK(session.restored());
}

}  // namespace
}  // namespace vireo
