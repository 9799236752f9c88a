// SPDX-License-Identifier: Apache-2.0
#include "src/options.h"

#include <initializer_list>
#include <string>
#include <vector>

#include <sys/mman.h>

#include "src/base/fd.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

Result<Invocation> parse(std::initializer_list<const char*> arguments) {
  std::vector<const char*> all = {"/usr/bin/vireo"};
  all.insert(all.end(), arguments);
  return parse_command_line(all);
}

Invocation accepted(std::initializer_list<const char*> arguments) {
  Result<Invocation> invocation = parse(arguments);
  INFO((invocation ? "" : invocation.error().message()));
  REQUIRE(invocation);
  return std::move(*invocation);
}

std::string refused(std::initializer_list<const char*> arguments,
                    ErrorCode code = ErrorCode::kUsage) {
  const Result<Invocation> invocation = parse(arguments);
  REQUIRE_FALSE(invocation);
  INFO(invocation.error().message());
  CHECK(invocation.error().code() == code);
  CHECK(invocation.error().message().find('\n') == std::string::npos);
  return invocation.error().message();
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

/// A configuration file, and the word that names it.
class File {
 public:
  explicit File(std::string_view text) : fd_(::memfd_create("vm.toml", 0)) {
    REQUIRE(write_full(fd_.get(), std::as_bytes(std::span(text))));
    path_ = "fd:" + std::to_string(fd_.get());
  }
  const char* path() const { return path_.c_str(); }

 private:
  UniqueFd fd_;
  std::string path_;
};

TEST_CASE("options: each one sets its key") {
  const Config config = accepted({"run",
                                  "--name",
                                  "web",
                                  "--kernel",
                                  "k",
                                  "--initramfs",
                                  "i",
                                  "--cmdline",
                                  "c",
                                  "--append",
                                  "a",
                                  "--cpus",
                                  "3",
                                  "--memory",
                                  "64M",
                                  "--pid-file",
                                  "pid",
                                  "--timeline",
                                  "t",
                                  "--profile",
                                  "p",
                                  "--log-level",
                                  "warn",
                                  "--log-format",
                                  "json",
                                  "--log-file",
                                  "fd:7",
                                  "--serial",
                                  "file,path=s,append",
                                  "--boot-timer",
                                  "--rng"})
                            .config;
  CHECK(config.rng);
  CHECK(config.name == "web");
  CHECK(config.log.name == "web");
  CHECK(config.boot.kernel == "k");
  CHECK(config.boot.initramfs == "i");
  CHECK(config.boot.cmdline == "c");
  CHECK(config.boot.append == "a");
  CHECK(config.machine.cpus == 3);
  CHECK(config.machine.memory_bytes == std::uint64_t{64} << 20);
  CHECK(config.process.pid_file == "pid");
  CHECK(config.process.timeline == "t");
  CHECK(config.process.profile == "p");
  CHECK(config.process.boot_timer);
  CHECK(config.log.level == LogLevel::kWarn);
  CHECK(config.log.format == LogFormat::kJson);
  CHECK(config.log.file == "fd:7");
  CHECK(config.serial.mode == SerialMode::kFile);
  CHECK(config.serial.path == "s");
  CHECK(config.serial.append);
}

TEST_CASE("options: they win over the file, wherever they stand; the rest of it stays") {
  const File file(
      "name = \"file\"\nboot = { kernel = \"k\", append = \"a\" }\n"
      "machine = { cpus = 2, memory = \"1G\" }\n"
      "serial = { mode = \"file\", path = \"x\", append = true }\n");
  const Config plain = accepted({"run", file.path()}).config;
  CHECK(plain.machine.cpus == 2);
  CHECK(plain.serial.mode == SerialMode::kFile);
  for (const Config& config :
       {accepted({"run", file.path(), "--cpus", "5", "--serial", "null", "--name=option"}).config,
        accepted({"run", "--cpus=5", "--serial=null", "--name", "option", file.path()}).config}) {
    CHECK(config.name == "option");
    CHECK(config.machine.cpus == 5);
    CHECK(config.machine.memory_bytes == std::uint64_t{1} << 30);
    CHECK(config.boot.append == "a");
    // --serial replaces the whole section: a path of another mode would not fit.
    CHECK(config.serial.mode == SerialMode::kNull);
    CHECK(config.serial.path.empty());
    CHECK_FALSE(config.serial.append);
  }
  const File timer("boot.kernel = \"k\"\nprocess.boot_timer = true\n");
  CHECK(accepted({"run", timer.path()}).config.process.boot_timer);
  CHECK_FALSE(accepted({"run", timer.path(), "--boot-timer=false"}).config.process.boot_timer);
}

TEST_CASE("options: what a key refuses, its option refuses under its own name") {
  CHECK(refused({"run", "--kernel", "k", "--cpus", "0"}).starts_with("--cpus: "));
  CHECK(refused({"run", "--kernel", "k", "--cpus", "two"}).starts_with("--cpus: "));
  CHECK(
      refused({"run", "--kernel", "k", "--cpus", "99999999999999999999"}).starts_with("--cpus: "));
  CHECK(refused({"run", "--kernel", "k", "--memory", "512"}).starts_with("--memory: "));
  CHECK(refused({"run", "--kernel", "k", "--memory", "16M"}).starts_with("--memory: "));
  CHECK(refused({"run", "--kernel", ""}).starts_with("--kernel: wants a path"));
  CHECK(refused({"run", "--kernel", "fd:"}).starts_with("--kernel: "));
  CHECK(refused({"run", "--kernel", "k", "--log-file", "fd:a:b"}).starts_with("--log-file: "));
  CHECK(refused({"run", "--kernel", "k", "--name", "."}).starts_with("--name: "));
  CHECK(refused({"run", "--kernel", "k", "--log-level", "loud"}).starts_with("--log-level: "));
  CHECK(contains(refused({"run", "--kernel"}), "--kernel"));
  CHECK(contains(refused({"run", "--kernel", "k", "--cpus", "1", "--cpus", "2"}), "--cpus"));
  CHECK(contains(refused({"run", "--kernle", "k"}), "--kernle"));
  CHECK(contains(refused({"run", "--kernel", "k", "a\nb", "c"}), "c"));
}

TEST_CASE("options: text is UTF-8, as it is in a file") {
  const auto append = [](const char* text) {
    return parse({"run", "--kernel", "k", "--append", text});
  };
  for (const char* const text :
       {"\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\x7f"}) {
    CHECK(append(text));
  }
  for (const char* const text :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3\x28", "\xe0\x80\x80", "\xed\xa0\x80",
        "\xe2\x82", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    const auto result = append(text);
    REQUIRE_FALSE(result);
    CHECK(result.error().message() == "--append: wants text in UTF-8");
  }
}

TEST_CASE("options: --serial takes a mode and what that mode wants") {
  const auto serial = [](const char* text) {
    return accepted({"run", "--kernel", "k", "--serial", text}).config.serial;
  };
  CHECK(serial("pty").mode == SerialMode::kPty);
  CHECK(serial("mode=unix,path=fd:console").path == "fd:console");
  CHECK(serial("file,append,path=a=b").path == "a=b");
  CHECK(serial("path=a,,b,,,,c,mode=unix").path == "a,b,,c");
  CHECK_FALSE(serial("file,append=off,path=a").append);
  const auto wrong = [](const char* text, ErrorCode code = ErrorCode::kUsage) {
    return refused({"run", "--kernel", "k", "--serial", text}, code);
  };
  CHECK(wrong("").starts_with("--serial: "));
  CHECK(wrong("tty").starts_with("--serial: "));
  CHECK(wrong("file,paht=x").starts_with("--serial: unknown key \"paht\"; did you mean \"path\"?"));
  CHECK(wrong("file,path=").starts_with("--serial: path: wants a path"));
  CHECK(wrong("file,").starts_with("--serial: unknown key \"\""));
  CHECK(wrong("file,path=x,").starts_with("--serial: unknown key \"\""));
  CHECK(wrong("file,path").starts_with("--serial: path: wants a value"));
  CHECK(wrong("file,path=x,append=maybe").starts_with("--serial: append: "));
  CHECK(wrong("file,mode=pty,path=x").starts_with("--serial: mode: given twice"));
  CHECK(wrong("file,path=x,path=y").starts_with("--serial: path: given twice"));
  CHECK(wrong("file,path=x,append,append").starts_with("--serial: append: given twice"));
  CHECK(wrong("file", ErrorCode::kConfig).starts_with("serial.path: missing"));
  CHECK(wrong("pty,path=x", ErrorCode::kConfig).starts_with("serial.path: "));
  CHECK(wrong("unix,path=x,append", ErrorCode::kConfig).starts_with("serial.append: "));
}

TEST_CASE("options: --disk and --volume add to what the file has, in their order") {
  const File file(
      "boot.kernel = \"k\"\n[[disk]]\nid = \"a\"\npath = \"a.img\"\n"
      "[[volume]]\nid = \"v\"\npath = \"v.img\"\nsize = \"1G\"\n");
  const Config config = accepted({"run", "--disk",
                                  "id=b,path=x,,y=z,root,readonly,rate_limit.ops.size=100,"
                                  "rate_limit.ops.refill=1s",
                                  "--volume", "id=w,path=w.img,size=16M", "--disk",
                                  "id=c,path=[c],queues=cpus,direct=off,cache=unsafe", file.path()})
                            .config;
  REQUIRE(config.disks.size() == 3);
  CHECK(config.disks[0] == DiskConfig{.id = "a", .path = "a.img"});
  DiskConfig second{.id = "b", .path = "x,y=z", .root = true, .readonly = true};
  second.rate_limit.ops = TokenBucketConfig{.size = 100, .refill_ns = 1'000'000'000};
  CHECK(config.disks[1] == second);
  CHECK(config.disks[2] ==
        DiskConfig{.id = "c", .path = "[c]", .cache = DiskCache::kUnsafe, .queues = 0});
  REQUIRE(config.volumes.size() == 2);
  CHECK(config.volumes[1].id == "w");
  CHECK(config.volumes[1].size_bytes == std::uint64_t{16} << 20);
}

TEST_CASE("options: what a disk's key refuses, its word refuses, and names the disk") {
  const auto wrong = [](const char* text, ErrorCode code = ErrorCode::kUsage) {
    return refused({"run", "--kernel", "k", "--disk", text}, code);
  };
  CHECK(wrong("").starts_with("--disk: unknown key \"\""));
  CHECK(wrong("a.img").starts_with("--disk: unknown key \"a.img\""));
  CHECK(wrong("id=a/b").starts_with("--disk \"a/b\": id: "));
  CHECK(wrong("path=x,id=a,queues=0").starts_with("--disk \"a\": queues: wants a whole number"));
  CHECK(wrong("id=a,paht=x") == "--disk \"a\": unknown key \"paht\"; did you mean \"path\"?");
  CHECK(wrong("id=a,path") == "--disk \"a\": path: wants a value behind a =");
  CHECK(wrong("id=a,path=").starts_with("--disk \"a\": path: wants a path"));
  CHECK(wrong("id=a,rate_limit=1").starts_with("--disk \"a\": unknown key"));
  CHECK(wrong("id=a,id=b").starts_with("--disk \"a\": id: given twice"));
  CHECK(wrong("path=x", ErrorCode::kConfig).starts_with("disk.id: missing"));
  CHECK(wrong("id=a", ErrorCode::kConfig).starts_with("disk \"a\": path: missing"));
  CHECK(refused({"run", "--kernel", "k", "--volume", "id=v,guest_path=/a"}) ==
        "--volume \"v\": guest_path: not yet supported; remove it");
  const File file("boot.kernel = \"k\"\n[[disk]]\nid = \"a\"\npath = \"a.img\"\n");
  CHECK(refused({"run", file.path(), "--disk", "id=a,path=x"}, ErrorCode::kConfig)
            .starts_with("disk \"a\": id: given twice"));
}

TEST_CASE("options: doctor takes --json and nothing else") {
  CHECK(accepted({"doctor"}).command == Command::kDoctor);
  CHECK_FALSE(accepted({"doctor"}).json);
  CHECK(accepted({"doctor", "--json"}).json);
  CHECK(accepted({"doctor", "--help"}).command == Command::kPrint);
  CHECK(contains(accepted({"doctor", "--help"}).text, "vireo doctor --json"));
  for (const char* const wrong : {"--jsn", "vm.toml", "--json=maybe", "--kernel"}) {
    CHECK(contains(refused({"doctor", wrong}), "see vireo doctor --help"));
  }
}

TEST_CASE("options: each --allow-path adds to those of the file") {
  const File file("boot.kernel = \"k\"\nsandbox.allow_paths = [\"/a\"]\n");
  CHECK(accepted({"run", file.path(), "--allow-path", "/b", "--allow-path=/c,d"})
            .config.sandbox.allow_paths == std::vector<std::string>{"/a", "/b", "/c,d"});
  CHECK(refused({"run", "--kernel", "k", "--allow-path", "images"}) ==
        "--allow-path: \"images\": wants absolute paths");
}

TEST_CASE("options: what later versions will have is refused by name") {
  for (const char* const option : {"--net", "--vsock", "--fs", "--balloon", "--netns"}) {
    CHECK(refused({"run", "--kernel", "k", option, "x"}) ==
          std::string(option) + ": not yet supported; remove it");
    const std::string joined = std::string(option) + "=x";
    CHECK(refused({"run", "--kernel", "k", joined.c_str()}).starts_with(option));
  }
  for (const char* const command : {"serve", "fork", "exec", "shell", "cp"}) {
    CHECK(contains(refused({command}), "is not yet supported"));
  }
  CHECK(contains(refused({"frobnicate"}), "not a command"));
  CHECK(contains(refused({"a\nb"}), "a\\x0ab"));
  CHECK(contains(refused({}), "no command"));
  CHECK(parse_command_line(std::vector<const char*>{"/bin/firecracker"}).error().code() ==
        ErrorCode::kUsage);
  CHECK(parse_command_line({}).error().code() == ErrorCode::kUsage);
}

TEST_CASE("options: a value that is called like an option is a value") {
  CHECK(accepted({"run", "--kernel", "k", "--append=--net"}).config.boot.append == "--net");
}

TEST_CASE("options: run, check, help and version are told apart") {
  CHECK(accepted({"run", "--kernel", "k"}).command == Command::kRun);
  CHECK(accepted({"check", "--kernel", "k"}).command == Command::kCheck);
  for (const char* const word : {"--help", "-h", "help"}) {
    CHECK(contains(accepted({word}).text, "usage: vireo run"));
  }
  for (const char* const command : {"run", "check", "ctl", "doctor"}) {
    CHECK(accepted({"help", command}).text == accepted({command, "--help"}).text);
  }
  CHECK(contains(refused({"help", "frobnicate"}), "not a command"));
  CHECK(contains(refused({"help", "run", "vm.toml"}), "vm.toml"));
  for (const char* const word : {"--version", "-V"}) {
    CHECK(accepted({word}).text.starts_with("vireo "));
  }
  const Invocation help = accepted({"run", "--help"});
  CHECK(help.command == Command::kPrint);
  for (const char* const option :
       {"--name", "--kernel", "--initramfs", "--cmdline", "--append", "--cpus", "--memory",
        "--pid-file", "--timeline", "--profile", "--log-level", "--log-format", "--log-file",
        "--serial", "--boot-timer"}) {
    CHECK(contains(help.text, option));
  }
}

}  // namespace
}  // namespace vireo
