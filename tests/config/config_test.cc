// SPDX-License-Identifier: Apache-2.0
#include "src/config.h"

#include <cstdlib>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "src/base/fd.h"
#include "src/config_value.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

std::string refusal(const std::string& text) {
  Config config;
  Result<> result = read_config_text(text, "vm.toml", config);
  if (result) {
    result = validate(config);
  }
  REQUIRE_FALSE(result);
  CHECK(result.error().code() == ErrorCode::kConfig);
  return result.error().message();
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

Config valid(const std::string& text) {
  Config config;
  config.boot.kernel = "vmlinuz";
  const Result<> result = read_config_text(text, "vm.toml", config);
  INFO((result ? "" : result.error().message()));
  REQUIRE(result);
  REQUIRE(validate(config));
  return config;
}

TEST_CASE("config: sizes are a number and one of K, M, G, T") {
  CHECK(parse_size("1K") == 1024);
  CHECK(parse_size("512M") == std::uint64_t{512} << 20);
  CHECK(parse_size("0G") == 0);
  CHECK(parse_size("16777215T") == std::uint64_t{16777215} << 40);
  for (const std::string_view text :
       {"", "M", "512", "512B", "512MB", "512MiB", "512k", "-1M", "+1M", " 1M", "1M ", "1 M",
        "1.5G", "0x10M", "16777216T", "99999999999999999999K"}) {
    INFO(text);
    CHECK_FALSE(parse_size(text).has_value());
  }
}

TEST_CASE("config: the shortest text of a size reads back") {
  CHECK(format_size(std::uint64_t{512} << 20) == "512M");
  CHECK(format_size(std::uint64_t{1} << 40) == "1T");
  CHECK(format_size(std::uint64_t{2048} << 40) == "2048T");
  CHECK(format_size(1536 << 10) == "1536K");
  for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{1} << 10,
                                    std::uint64_t{1025} << 20, std::uint64_t{3} << 30}) {
    CHECK(parse_size(format_size(bytes)) == bytes);
  }
}

TEST_CASE("config: an unknown key is refused with the line, and with the one it resembles") {
  CHECK(refusal("[machine]\ncpu = 2\n") ==
        "vm.toml:2: unknown key \"machine.cpu\"; did you mean \"machine.cpus\"?");
  CHECK(refusal("[machine]\nmemroy = \"1G\"\n") ==
        "vm.toml:2: unknown key \"machine.memroy\"; did you mean \"machine.memory\"?");
  CHECK(refusal("quite_different = 2\n") == "vm.toml:1: unknown key \"quite_different\"");
  CHECK(refusal("[machine.topology]\nchips = 2\n") ==
        "vm.toml:2: unknown key \"machine.topology.chips\"");
  CHECK(refusal("machine = 2\n") == "vm.toml:1: machine: wants a table");
  const std::string endless = refusal(std::string(100000, 'a') + " = 1\n");
  CHECK(endless.size() < 300);
  CHECK(contains(endless, "aaa ... aaa"));
}

TEST_CASE("config: whatever a file holds, the message is one printable line") {
  CHECK(refusal("\"a\\nb\" = 1\n") == "vm.toml:1: unknown key \"a\\x0ab\"");
  CHECK(refusal("[log]\nlevel = \"a\\nb\\u007f\"\n") ==
        "vm.toml:2: log.level: \"a\\x0ab\\x7f\" is not one of trace, debug, info, warn, error, "
        "off");
  CHECK(printable("tab\there") == "tab\\x09here");
  CHECK(printable("\xc3\xa4") == "\xc3\xa4");
}

TEST_CASE("config: text that is no TOML is refused with its line") {
  CHECK(refusal("\n[machine\n").starts_with("vm.toml:2: "));
  CHECK(refusal("[machine]\ncpus = 1\ncpus = 2\n").starts_with("vm.toml:3: "));
  CHECK(refusal("name = \"\xff\xfe\"\n").starts_with("vm.toml:1: "));
  // toml++ 3.2 has assertions where these want an error.
  for (const char* const text : {"\n[>]\n", "\n[[[a]]]\n", "\n[[=\n", "\n[ $]\n"}) {
    CHECK(refusal(text).starts_with("vm.toml:2: "));
  }
}

TEST_CASE("config: a key without end costs no stack, and strings and comments are no keys") {
  std::string key = "a";
  for (int i = 0; i < 200000; ++i) {
    key += ".a";
  }
  CHECK(refusal("\n[" + key + "]\n") == "vm.toml:2: a key of more than 32 parts");
  CHECK(contains(refusal(key + " = 1\n"), "more than 32 parts"));
  CHECK(contains(refusal("x = \"\\\"\"\n" + key + " = 1\n"), "vm.toml:2: a key of more"));
  CHECK(contains(refusal("x = '\\'\n" + key + " = 1\n"), "vm.toml:2: a key of more"));
  CHECK(contains(refusal("x = \"\"\"\n\"\"\"\n" + key + " = 1\n"), "vm.toml:3: a key of more"));
  CHECK(
      contains(refusal("x = { a = \"\"\"b\"\"\"\"\", " + key + " = 1 }\n"), "vm.toml:1: a key of"));
  const std::string dots(100, '.');
  CHECK(valid("boot.append = \"" + dots + "\"").boot.append == dots);
  CHECK(valid("boot.append = '" + dots + "'").boot.append == dots);
  CHECK(valid("boot.append = \"\"\"\\\"" + dots + "\"\"\"").boot.append == "\"" + dots);
  valid("# " + dots + "\nname = \"a\" # " + dots);
}

TEST_CASE("config: keys that do not fit each other are refused by name") {
  const std::string kernel = "boot.kernel = \"k\"\n";
  CHECK(refusal("").starts_with("boot.kernel: missing"));
  CHECK(refusal(kernel + "machine.cpus = 4\nmachine.topology.sockets = 3\n")
            .starts_with("machine.topology: "));
  CHECK(refusal(kernel + "serial.mode = \"file\"").starts_with("serial.path: missing"));
  CHECK(refusal(kernel + "serial.mode = \"unix\"").starts_with("serial.path: missing"));
  CHECK(refusal(kernel + "serial.path = \"x\"").starts_with("serial.path: only"));
  CHECK(refusal(kernel + "serial = { mode = \"unix\", path = \"x\", append = true }")
            .starts_with("serial.append: only"));
  CHECK(refusal(kernel + "serial = { mode = \"file\", path = \"fd:3\", append = true }")
            .starts_with("serial.append: whoever opened"));
  valid("serial = { mode = \"file\", path = \"x\", append = true }");
  valid("serial = { mode = \"unix\", path = \"fd:console\" }");
  valid("machine = { cpus = 8, topology = { sockets = 2, cores = 2, threads = 2 } }");
}

TEST_CASE("config: without a topology there is one socket of single-threaded cores") {
  const arch::CpuTopology topology = resolved_topology(valid("machine.cpus = 3").machine);
  CHECK(topology.sockets == 1);
  CHECK(topology.cores == 3);
  CHECK(topology.threads == 1);
}

constexpr const char* kFull = R"(name = "web-1"
namespace = "shop"
labels = { revision = "3", "a.b \"c\"" = "\t" }
[machine]
cpus = 4
topology = { sockets = 1, cores = 2, threads = 2 }
memory = "1536M"
hugepages = "2M"
mergeable = true
prefault = true
uuid = "8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2d"
cpu_features = ["-avx512f", "+avx"]
[boot]
kernel = "vm'linuz\\\""
initramfs = "fd:initramfs"
cache = "/cache"
unpack = "off"
kaslr = "off"
cmdline = ""
append = "quiet \u00e4"
[serial]
mode = "file"
path = "console.log"
append = true
[process]
pid_file = "web-1.pid"
timeline = "boot.json"
profile = "profile.json"
boot_timer = true
[log]
level = "error"
format = "json"
file = "fd:3"
)";

TEST_CASE("config: the resolved print is the same configuration again") {
  for (const char* const text :
       {"", kFull, "serial.mode = \"null\"\nlog.level = \"off\"\n", "boot.cmdline = \"a\\nb\"\n"}) {
    const Config config = valid(text);
    const std::string printed = to_toml(config);
    INFO(printed);
    Config again;
    REQUIRE(read_config_text(printed, "printed", again));
    REQUIRE(validate(again));
    CHECK(to_toml(again) == printed);
    CHECK(again.name == config.name);
    CHECK(again.namespace_label == config.namespace_label);
    CHECK(again.labels == config.labels);
    CHECK(again.machine.cpus == config.machine.cpus);
    CHECK(resolved_topology(again.machine).threads == resolved_topology(config.machine).threads);
    CHECK(again.machine.memory_bytes == config.machine.memory_bytes);
    CHECK(again.machine.huge_pages == config.machine.huge_pages);
    CHECK(again.machine.mergeable == config.machine.mergeable);
    CHECK(again.machine.prefault == config.machine.prefault);
    CHECK(again.machine.uuid == config.machine.uuid);
    CHECK(again.machine.cpu_features == config.machine.cpu_features);
    CHECK(again.boot.kernel == config.boot.kernel);
    CHECK(again.boot.initramfs == config.boot.initramfs);
    CHECK(again.boot.cache == config.boot.cache);
    CHECK(again.boot.unpack == config.boot.unpack);
    CHECK(again.boot.kaslr == config.boot.kaslr);
    CHECK(again.boot.cmdline == config.boot.cmdline);
    CHECK(again.boot.append == config.boot.append);
    CHECK(again.serial.mode == config.serial.mode);
    CHECK(again.serial.path == config.serial.path);
    CHECK(again.serial.append == config.serial.append);
    CHECK(again.process.pid_file == config.process.pid_file);
    CHECK(again.process.timeline == config.process.timeline);
    CHECK(again.process.profile == config.process.profile);
    CHECK(again.process.boot_timer == config.process.boot_timer);
    CHECK(again.log.level == config.log.level);
    CHECK(again.log.format == config.log.format);
    CHECK(again.log.file == config.log.file);
  }
}

TEST_CASE("config: a file is read by its path or as an inherited descriptor") {
  const UniqueFd file(::memfd_create("vm.toml", 0));
  const std::string text = "machine.cpus = 7\n";
  REQUIRE(write_full(file.get(), std::as_bytes(std::span(text))));
  const std::string number = std::to_string(file.get());
  for (const std::string& path : {"fd:" + number, "/proc/self/fd/" + number}) {
    Config config;
    REQUIRE(read_config_file(path, config));
    CHECK(config.machine.cpus == 7);
  }
  Config config;
  CHECK(read_config_file("/nonexistent", config).error().code() == ErrorCode::kMissingInput);
  CHECK(read_config_file("/dev/null", config).error().code() == ErrorCode::kConfig);
  CHECK(read_config_file("/", config).error().code() == ErrorCode::kConfig);
  REQUIRE(::ftruncate(file.get(), (1 << 20) + 1) == 0);
  const Result<> huge = read_config_file("fd:" + number, config);
  REQUIRE_FALSE(huge);
  CHECK(contains(huge.error().message(), "larger than 1 MiB"));
}

}  // namespace
}  // namespace vireo
