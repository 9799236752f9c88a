// SPDX-License-Identifier: Apache-2.0
#include "src/base/log.h"

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "src/base/fd.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;

/// The log is one per process, so each of these has a process of its own. Returns what `work`
/// returned.
int in_child(const std::function<int()>& work) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(20);  // a log that waits for its reader fails, it does not hang
    ::_exit(work());
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/// A directory of its own for each test.
struct Directory {
  Directory() {
    std::string name = "/tmp/vireo-log-test.XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() { std::filesystem::remove_all(path); }
  std::string operator/(const char* name) const { return path / name; }
  std::filesystem::path path;
};

struct Pipe {
  Pipe() {
    std::array<int, 2> ends = {};
    REQUIRE(::pipe(ends.data()) == 0);  // to be inherited: open across an exec
    out = UniqueFd(ends[0]);
    in = UniqueFd(ends[1]);
  }
  UniqueFd out;
  UniqueFd in;
};

std::vector<std::string> lines_of(std::istream& stream) {
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(line);
  }
  return lines;
}

std::vector<std::string> lines_of_file(const std::string& path) {
  std::ifstream file(path);
  return lines_of(file);
}

/// `text` with a 0 for each digit: a time is told by its shape.
std::string shape_of(std::string text) {
  for (char& c : text) {
    c = c >= '0' && c <= '9' ? '0' : c;
  }
  return text;
}

/// All that is in a pipe now.
std::string drain(int fd) {
  ::fcntl(fd, F_SETFL, O_NONBLOCK);
  std::string text;
  std::array<char, 65536> buffer = {};
  ssize_t count = 0;
  while ((count = ::read(fd, buffer.data(), buffer.size())) > 0) {
    text.append(buffer.data(), static_cast<std::size_t>(count));
  }
  return text;
}

TEST_CASE("log: a text line has time, level, component and message; lower levels are not written") {
  const Directory directory;
  const std::string path = directory / "log";
  CHECK(in_child([&] {
          if (!open_log({.level = LogLevel::kWarn, .file = path})) {
            return 1;
          }
          log_debug("kvm", "not this");
          log_info("kvm", "nor this");
          log_warn("kvm", "vcpu {} did not {}", 3, "stop");
          log_error("boot", "no kernel");
          return log_enabled(LogLevel::kInfo) ? 2 : 0;
        }) == 0);
  const std::vector<std::string> lines = lines_of_file(path);
  REQUIRE(lines.size() == 2);
  CHECK(shape_of(lines[0]) == "0000-00-00T00:00:00.000000Z warning kvm: vcpu 0 did not stop");
  CHECK(shape_of(lines[1]) == "0000-00-00T00:00:00.000000Z error boot: no kernel");
}

TEST_CASE("log: off writes nothing") {
  const Directory directory;
  const std::string path = directory / "log";
  CHECK(in_child([&] {
          const bool opened = open_log({.level = LogLevel::kOff, .file = path}).has_value();
          log_error("boot", "no kernel");
          return opened ? 0 : 1;
        }) == 0);
  CHECK(lines_of_file(path).empty());
}

TEST_CASE("log: each JSON line is one object, whatever is in the message") {
  const Directory directory;
  const std::string path = directory / "log";
  CHECK(in_child([&] {
          if (!open_log({.level = LogLevel::kTrace,
                         .format = LogFormat::kJson,
                         .file = path,
                         .name = "web-1"})) {
            return 1;
          }
          log_info("boot", "{}", "quotes \" and \\, a\nnew line, a \x01");
          log_warn("serial", "{}", "no UTF-8: \xff\xfe");
          log_error("kvm", "plain");
          log(LogLevel::kTrace, "x", "{}", 1);
          log_debug("x", "{{}}");
          return 0;
        }) == 0);
  const std::vector<std::string> lines = lines_of_file(path);
  REQUIRE(lines.size() == 5);
  std::vector<nlohmann::json> parsed;
  for (const std::string& line : lines) {
    parsed.push_back(nlohmann::json::parse(line));
    CHECK(parsed.back().at("vm") == "web-1");
    CHECK(shape_of(parsed.back().at("time")) == "0000-00-00T00:00:00.000000Z");
  }
  CHECK(parsed[0].at("level") == "info");
  CHECK(parsed[0].at("component") == "boot");
  CHECK(parsed[0].at("message") == "quotes \" and \\, a\nnew line, a \x01");
  CHECK(parsed[1].at("level") == "warning");
  CHECK(parsed[1].at("message") == "no UTF-8: \xef\xbf\xbd\xef\xbf\xbd");
  CHECK(parsed[2].at("level") == "error");
  CHECK(parsed[3].at("level") == "trace");
  CHECK(parsed[4].at("level") == "debug");
  CHECK(parsed[4].at("message") == "{}");
}

TEST_CASE("log: appends, and is opened anew after a rotation") {
  const Directory directory;
  const std::string path = directory / "log";
  const std::string rotated = directory / "log.1";
  std::ofstream(path) << "kept\n";
  CHECK(in_child([&] {
          if (!open_log({.file = path})) {
            return 1;
          }
          log_info("a", "one");
          std::filesystem::rename(path, rotated);
          log_info("a", "two");
          if (!reopen_log()) {
            return 2;
          }
          log_info("a", "three");
          // Where it cannot be opened any more, the old file goes on.
          std::filesystem::rename(path, directory / "log.2");
          std::filesystem::create_directory(path);
          if (reopen_log()) {
            return 3;
          }
          log_info("a", "four");
          return 0;
        }) == 0);
  const auto first = lines_of_file(rotated);
  REQUIRE(first.size() == 3);
  CHECK(first[0] == "kept");
  CHECK(first[2].ends_with("a: two"));
  const auto second = lines_of_file(directory / "log.2");
  REQUIRE(second.size() == 2);
  CHECK(second[0].ends_with("a: three"));
  CHECK(second[1].ends_with("a: four"));
}

TEST_CASE("log: a file that cannot be opened is refused by its key") {
  const Directory directory;
  std::filesystem::create_directory(directory / "d");
  const std::string fifo = directory / "fifo";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  const std::array paths = {directory / "d", directory / "no/such", fifo};
  for (const std::string& path : paths) {
    const Result<> refused = open_log({.file = path});
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().message().starts_with("log.file: " + path + ": "));
  }
}

TEST_CASE("log: inherited descriptors take lines, and are not opened anew") {
  const Directory directory;
  const std::string path = directory / "log";
  // As a shell's >> leaves it.
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600));
  REQUIRE(file);
  CHECK(in_child([&] {
          if (!open_log({.file = "fd:" + std::to_string(file.get())})) {
            return 1;
          }
          log_info("a", "one");
          if (!reopen_log()) {
            return 2;
          }
          log_info("a", "two");
          return 0;
        }) == 0);
  const auto lines = lines_of_file(path);
  REQUIRE(lines.size() == 2);
  CHECK(lines[1].ends_with("a: two"));
}

TEST_CASE("log: an inherited descriptor of the wrong kind is refused") {
  const UniqueFd read_only(::open("/dev/null", O_RDONLY));
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM, 0));
  REQUIRE(listener.get() >= 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  for (const int fd : {read_only.get(), listener.get()}) {
    const std::string path = "fd:" + std::to_string(fd);
    const Result<> refused = open_log({.file = path});
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().message().starts_with("log.file: " + path + ": "));
    CHECK(refused.error().code() == ErrorCode::kConfig);
  }
  CHECK(open_log({.file = "fd:777"}).error().code() == ErrorCode::kMissingInput);
}

TEST_CASE("log: a full disk loses lines, and nothing else") {
  CHECK(in_child([] {
          if (!open_log({.file = "/dev/full"})) {
            return 1;
          }
          for (int i = 0; i < 1000; ++i) {
            log_warn("a", "line {}", i);
          }
          return 0;
        }) == 0);
}

/// Logs into a pipe that nobody reads until it takes no more, has it read, and logs once more.
/// Returns what was read the second time; `first` is what was read the first time.
int log_into_stopped_reader(LogFormat format, const std::string& file, Pipe& pipe, int redirected) {
  if (redirected >= 0) {
    ::dup2(pipe.in.get(), redirected);
  }
  if (!open_log({.format = format, .file = file})) {
    return 1;
  }
  const std::string text(100, 'x');
  std::uint64_t all = 0;
  for (int i = 0; i < 2000; ++i) {  // far more than a pipe holds
    log_warn("a", "{:04} {}", i, text);
    ++all;
  }
  const std::string before = drain(pipe.out.get());
  log_warn("a", "after");
  const std::string after = drain(pipe.out.get());
  std::istringstream stream(before + after);
  const std::vector<std::string> lines = lines_of(stream);
  // The oldest in order and whole, the note, and the line that found room again.
  std::vector<std::string> messages;
  for (const std::string& line : lines) {
    std::string message = line;
    if (format == LogFormat::kJson) {
      message = nlohmann::json::parse(line).at("message");
    } else if (const std::size_t at = line.find(": "); at != std::string::npos) {
      message = line.substr(at + 2);
    }
    messages.push_back(message);
  }
  if (messages.size() < 100 || messages.size() > 1000 || messages.back() != "after") {
    return 2;
  }
  const std::size_t kept = messages.size() - 2;
  for (std::size_t i = 0; i < kept; ++i) {
    if (messages[i] != fmt::format("{:04} {}", i, text)) {
      return 3;
    }
  }
  // Lines are all equally long, so what is lost is known to the byte.
  const std::uint64_t lost = (all - kept) * (lines[0].size() + 1);
  return messages[kept] == fmt::format("[{} bytes lost]", lost) ? 0 : 4;
}

TEST_CASE("log: a reader that stops costs its lines, never a wait, and is told") {
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    Pipe pipe;
    const std::string path = "fd:" + std::to_string(pipe.in.get());
    CHECK(in_child([&] { return log_into_stopped_reader(format, path, pipe, -1); }) == 0);
  }
}

TEST_CASE("log: the same on stderr, whose description stays as it was") {
  Pipe pipe;
  CHECK(in_child([&] {
          return log_into_stopped_reader(LogFormat::kText, "", pipe, STDERR_FILENO);
        }) == 0);
  CHECK((::fcntl(pipe.in.get(), F_GETFL) & O_NONBLOCK) == 0);
}

TEST_CASE("log: lines of many threads stay whole") {
  const Directory directory;
  const std::string path = directory / "log";
  CHECK(in_child([&] {
          if (!open_log({.format = LogFormat::kJson, .file = path})) {
            return 1;
          }
          std::vector<std::thread> threads;
          threads.reserve(4);
          for (int thread = 0; thread < 4; ++thread) {
            threads.emplace_back([thread] {
              for (int i = 0; i < 200; ++i) {
                log_info("a", "{} {} {}", thread, i, std::string(300, 'x'));
              }
            });
          }
          for (int i = 0; i < 20; ++i) {
            if (!reopen_log()) {
              return 2;
            }
          }
          for (std::thread& thread : threads) {
            thread.join();
          }
          return 0;
        }) == 0);
  const auto lines = lines_of_file(path);
  CHECK(lines.size() == 800);
  for (const std::string& line : lines) {
    CHECK(nlohmann::json::accept(line));
  }
}

TEST_CASE("log limiter: ten lines in five seconds, and a count of the others") {
  LogLimiter limiter;
  std::uint64_t dropped = 0;
  const std::uint64_t start = 100 * kSecond;
  for (int i = 0; i < 10; ++i) {
    CHECK(limiter.allow(start + static_cast<std::uint64_t>(i), dropped));
    CHECK(dropped == 0);
  }
  for (int i = 0; i < 7; ++i) {
    CHECK_FALSE(limiter.allow(start + 5 * kSecond - 1, dropped));
  }
  CHECK(limiter.allow(start + 5 * kSecond, dropped));
  CHECK(dropped == 7);
  CHECK(limiter.allow(start + 5 * kSecond, dropped));
  CHECK(dropped == 0);
  for (int i = 0; i < 8; ++i) {
    CHECK(limiter.allow(start + 6 * kSecond, dropped));
  }
  CHECK_FALSE(limiter.allow(start + 6 * kSecond, dropped));
}

TEST_CASE("log limiter: threads together get no more than one would") {
  LogLimiter limiter;
  std::atomic<unsigned> allowed = 0;
  std::atomic<std::uint64_t> told = 0;
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        std::uint64_t dropped = 0;
        if (limiter.allow(kSecond, dropped)) {
          ++allowed;
          told += dropped;
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  // Ten; a few more where threads met at the window's start.
  CHECK(allowed >= 10);
  CHECK(allowed <= 13);
  std::uint64_t dropped = 0;
  CHECK(limiter.allow(10 * kSecond, dropped));
  CHECK(allowed + told + dropped == 4000);
}

TEST_CASE("log: a guest's lines are limited, the rest is counted") {
  const Directory directory;
  const std::string path = directory / "log";
  CHECK(in_child([&] {
          if (!open_log({.file = path})) {
            return 1;
          }
          LogLimiter limiter;
          for (int i = 0; i < 1000; ++i) {
            log_guest(limiter, "serial", "port {}", i);
          }
          return 0;
        }) == 0);
  const auto lines = lines_of_file(path);
  REQUIRE(lines.size() == 10);
  CHECK(lines[9].ends_with("serial: port 9"));
}

}  // namespace
}  // namespace vireo
