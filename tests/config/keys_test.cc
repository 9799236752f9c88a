// SPDX-License-Identifier: Apache-2.0
// Each key of the configuration file: what it takes, what it refuses, and with which words.
#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "src/config.h"
#include "src/config_keys.h"
#include "tests/config/key_rows.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

Result<> read(const std::string& text, Config& config) {
  return read_config_text(text, "vm.toml", config);
}

Row label_row(const std::string& key, const std::function<std::string(const Config&)>& get) {
  const std::string longest(128, 'a');
  constexpr const char* kRule = "1 to 128 of A-Z a-z 0-9 . _ -";
  return {.key = key,
          .accepted = {{R"("web-1.A_z")", [get](const Config& c) { return get(c) == "web-1.A_z"; }},
                       {'"' + longest + '"',
                        [get, longest](const Config& c) { return get(c) == longest; }}},
          .refused = {{R"("")", kRule},
                      {R"(".web")", kRule},
                      {R"("-web")", kRule},
                      {R"("a/b")", kRule},
                      {"\"" + longest + "a\"", kRule},
                      {"1", kText}}};
}

Row topology_row(const std::string& part, unsigned arch::CpuTopology::* member) {
  constexpr const char* kRange = "wants a whole number from 1 to 64";
  return {
      .key = "machine.topology." + part,
      .accepted = {{"1", [=](const Config& c) { return (*c.machine.topology).*member == 1; }},
                   {"64", [=](const Config& c) { return (*c.machine.topology).*member == 64; }}},
      .refused = {{"0", kRange}, {"65", kRange}, {R"("2")", kRange}, {"2.0", kRange}}};
}

std::vector<Row> general_rows() {
  return {
      label_row("name", [](const Config& c) { return c.name; }),
      label_row("namespace", [](const Config& c) { return c.namespace_label; }),
      {.key = "labels",
       .accepted = {{R"({ revision = "3", "a.b" = "" })",
                     [](const Config& c) {
                       return c.labels ==
                              std::map<std::string, std::string>{{"a.b", ""}, {"revision", "3"}};
                     }},
                    {"{}", [](const Config& c) { return c.labels.empty(); }}},
       .refused = {{"{ revision = 3 }", "wants a table of texts"}, {R"("a")", "wants a table"}}},
      path_row("process.pid_file", [](const Config& c) { return c.process.pid_file; }),
      path_row("process.timeline", [](const Config& c) { return c.process.timeline; }),
      path_row("process.profile", [](const Config& c) { return c.process.profile; }),
      flag_row("process.boot_timer", [](const Config& c) { return c.process.boot_timer; }),
      {.key = "log.level",
       .accepted = {{R"("trace")", [](const Config& c) { return c.log.level == LogLevel::kTrace; }},
                    {R"("debug")", [](const Config& c) { return c.log.level == LogLevel::kDebug; }},
                    {R"("info")", [](const Config& c) { return c.log.level == LogLevel::kInfo; }},
                    {R"("warn")", [](const Config& c) { return c.log.level == LogLevel::kWarn; }},
                    {R"("error")", [](const Config& c) { return c.log.level == LogLevel::kError; }},
                    {R"("off")", [](const Config& c) { return c.log.level == LogLevel::kOff; }}},
       .refused = {{R"("loud")", "trace, debug, info, warn, error, off"}, {"1", kText}}},
      {.key = "log.format",
       .accepted = {{R"("text")", [](const Config& c) { return c.log.format == LogFormat::kText; }},
                    {R"("json")",
                     [](const Config& c) { return c.log.format == LogFormat::kJson; }}},
       .refused = {{R"("xml")", "text, json"}, {"true", kText}}},
      path_row("log.file", [](const Config& c) { return c.log.file; }),
      path_row("control.path", [](const Config& c) { return c.control_path; }),
      path_row("metrics.path", [](const Config& c) { return c.metrics_path; }),
      flag_row("sandbox.enabled", [](const Config& c) { return c.sandbox.enabled; }),
      {.key = "sandbox.allow_paths",
       .accepted = {{R"(["/srv/a", "/dev/sdb"])",
                     [](const Config& c) {
                       return c.sandbox.allow_paths ==
                              std::vector<std::string>{"/srv/a", "/dev/sdb"};
                     }},
                    {R"("/srv/a b")",
                     [](const Config& c) {
                       return c.sandbox.allow_paths == std::vector<std::string>{"/srv/a b"};
                     }},
                    {"[]", [](const Config& c) { return c.sandbox.allow_paths.empty(); }}},
       .refused = {{R"(["/srv", "images"])", "\"images\": wants absolute paths"},
                   {R"([""])", "wants absolute paths"},
                   {R"("fd:3")", "wants absolute paths"},
                   {R"(["/a\u0000b"])", "NUL"},
                   {"true", "wants a list of texts"},
                   {"[1]", "wants a list of texts"}}},
      {.key = "process.notify",
       .accepted = {{R"("fd:5")", [](const Config& c) { return c.process.notify == "fd:5"; }},
                    {R"("fd:up")", [](const Config& c) { return c.process.notify == "fd:up"; }}},
       .refused = {{R"("/run/up")", "wants an inherited descriptor"},
                   {R"("")", "wants a path"},
                   {"5", kText}}},
  };
}

std::vector<Row> ready_rows() {
  using When = ReadyConfig::When;
  constexpr const char* kWhen = "wants started, serial:TEXT, or mark:N";
  constexpr const char* kDuration = "wants a duration";
  const auto mark = [](int number) {
    return
        [number](const Config& c) { return c.ready.when == When::kMark && c.ready.mark == number; };
  };
  const auto lasts = [](std::uint64_t us) {
    return [us](const Config& c) { return c.ready.timeout_ns == us * 1000; };
  };
  return {
      {.key = "ready.when",
       .accepted = {{R"("started")",
                     [](const Config& c) { return c.ready.when == When::kStarted; }},
                    {R"("serial:login: ")",
                     [](const Config& c) {
                       return c.ready.when == When::kSerial && c.ready.text == "login: ";
                     }},
                    {R"("mark:0")", mark(0)},
                    {R"("mark:255")", mark(255)}},
       .refused = {{R"("agent")", "not yet supported"},
                   {R"("serial:")", kWhen},
                   {R"("mark:")", kWhen},
                   {R"("mark:256")", kWhen},
                   {R"("mark:-1")", kWhen},
                   {R"("mark:1x")", kWhen},
                   {R"("")", kWhen},
                   {"true", kText}}},
      {.key = "ready.timeout",
       .accepted = {{R"("250ms")", lasts(250'000)},
                    {R"("7us")", lasts(7)},
                    {R"("90s")", lasts(90'000'000)},
                    {R"("2m")", lasts(120'000'000)},
                    {R"("1h")", lasts(3'600'000'000)}},
       .refused = {{R"("30")", kDuration},
                   {R"("s")", kDuration},
                   {R"("1.5s")", kDuration},
                   {R"("-1s")", kDuration},
                   {R"("0s")", "above 0"},
                   {R"("99999999999999h")", kDuration},
                   {"30", kDuration}}},
  };
}

/// A key that writes one file of the cgroup.
Row cgroup_row(const std::string& key, const std::string& file,
               const std::vector<std::pair<std::string, std::string>>& accepted,
               std::vector<Refused> refused) {
  Row row = {.key = key, .accepted = {}, .refused = std::move(refused)};
  for (const auto& [value, written] : accepted) {
    row.accepted.push_back({value, [file, written](const Config& c) {
                              return c.limits.cgroup_files.at(file) == written;
                            }});
  }
  return row;
}

std::vector<Row> limits_rows() {
  using Lists = std::vector<std::vector<unsigned>>;
  const auto cpus = [](const Lists& lists) {
    return [lists](const Config& c) { return c.limits.cpu_affinity == lists; };
  };
  const auto nofile = [](std::uint64_t soft, std::uint64_t hard) {
    return [=](const Config& c) {
      const ResourceLimit& limit = c.limits.rlimits.at("nofile");
      return limit.soft == soft && limit.hard == hard;
    };
  };
  constexpr const char* kCpus = "wants processors such as";
  constexpr const char* kCgroup = "wants a cgroup such as";
  constexpr const char* kLimit = "SOFT:HARD";
  return {
      {.key = "limits.cpu_affinity",
       .accepted = {{R"("0-3,8")", cpus({{0, 1, 2, 3, 8}})},
                    {R"("2,1,1-2")", cpus({{1, 2}})},
                    {R"(["0", "1-2"])", cpus({{0}, {1, 2}})}},
       .refused = {{R"("")", kCpus},
                   {R"("3-1")", kCpus},
                   {R"("1-")", kCpus},
                   {R"("1,")", kCpus},
                   {R"("1024")", kCpus},
                   {R"(["0", "x"])", kCpus},
                   {"3", "wants a list of texts"}}},
      flag_row("limits.core_scheduling", [](const Config& c) { return c.limits.core_scheduling; }),
      {.key = "limits.cgroup",
       .accepted = {{R"("machine.slice/web-1")",
                     [](const Config& c) { return c.limits.cgroup == "machine.slice/web-1"; }}},
       .refused = {{R"("a/../b")", kCgroup},
                   {R"("..")", kCgroup},
                   {R"("a/")", kCgroup},
                   {R"("fd:3")", kCgroup},
                   {R"("")", "wants a path"},
                   {"1", kText}}},
      cgroup_row("limits.memory_max", "memory.max", {{R"("1G")", "1073741824"}},
                 {{R"("1")", "binary suffix"}, {"1", "binary suffix"}}),
      cgroup_row("limits.cpu_quota", "cpu.max",
                 {{R"("150%")", "150000 100000"}, {R"("1%")", "1000 100000"}},
                 {{R"("0%")", "share of one processor"},
                  {R"("50")", "share of one processor"},
                  {R"("1.5%")", "share of one processor"},
                  {"50", kText}}),
      cgroup_row("limits.cpu_weight", "cpu.weight", {{"1", "1"}, {"10000", "10000"}},
                 {{"0", "from 1 to 10000"}, {"10001", "from 1 to 10000"}}),
      cgroup_row("limits.pids_max", "pids.max", {{"64", "64"}}, {{"0", "from 1 to"}}),
      cgroup_row("limits.io_max", "io.max",
                 {{R"("259:0 rbps=1048576 wiops=100")", "259:0 rbps=1048576 wiops=100"}},
                 {{R"("rbps=1")", "wants a device"},
                  {R"("259:0")", "wants a device"},
                  {R"("259:0 rbps=1\n8:0 wbps=1")", "wants a device"}}),
      {.key = "limits.rlimits",
       .accepted = {{R"({ nofile = "1024:4096" })", nofile(1024, 4096)},
                    {R"({ nofile = "512" })", nofile(512, 512)},
                    {R"({ nofile = "512:unlimited" })", nofile(512, ~std::uint64_t{0})}},
       .refused = {{R"({ files = "1" })", "is not one of as, core"},
                   {R"({ nofile = "2:1" })", kLimit},
                   {R"({ nofile = "x" })", kLimit},
                   {R"({ nofile = "1:" })", kLimit},
                   {"{ nofile = 1 }", "wants a table of texts"}}},
  };
}

Row memory_row() {
  const auto is = [](std::uint64_t mib) {
    return [mib](const Config& c) { return c.machine.memory_bytes == mib << 20; };
  };
  constexpr const char* kSuffix = "wants a size with a binary suffix";
  constexpr const char* kRange = "whole MiB from 32M to 1T";
  return {.key = "machine.memory",
          .accepted = {{R"("32M")", is(32)},
                       {R"("65536K")", is(64)},
                       {R"("2G")", is(2048)},
                       {R"("1T")", is(1 << 20)}},
          .refused = {{"512", kSuffix},
                      {R"("512")", kSuffix},
                      {R"("512MB")", kSuffix},
                      {R"("512m")", kSuffix},
                      {R"("")", kSuffix},
                      {R"("-1G")", kSuffix},
                      {R"("31M")", kRange},
                      {R"("33000K")", kRange},
                      {R"("1025G")", kRange},
                      {R"("99999999999T")", kSuffix}}};
}

std::vector<Row> machine_rows() {
  const auto pages = [](HugePages kind) {
    return [kind](const Config& c) { return c.machine.huge_pages == kind; };
  };
  constexpr const char* kUuid = "wants a UUID";
  return {
      {.key = "machine.cpus",
       .accepted = {{"1", [](const Config& c) { return c.machine.cpus == 1; }},
                    {"64", [](const Config& c) { return c.machine.cpus == 64; }}},
       .refused = {{"0", "from 1 to 64"},
                   {"65", "65 is out of range"},
                   {"-1", "from 1 to 64"},
                   {R"("2")", "whole number"},
                   {"2.5", "whole number"}}},
      topology_row("sockets", &arch::CpuTopology::sockets),
      topology_row("cores", &arch::CpuTopology::cores),
      topology_row("threads", &arch::CpuTopology::threads),
      memory_row(),
      {.key = "machine.hugepages",
       .accepted = {{R"("off")", pages(HugePages::kOff)},
                    {R"("transparent")", pages(HugePages::kTransparent)},
                    {R"("2M")", pages(HugePages::k2M)},
                    {R"("1G")", pages(HugePages::k1G)}},
       .refused = {{R"("4M")", "off, transparent, 2M, 1G"}, {"true", kText}}},
      flag_row("machine.mergeable", [](const Config& c) { return c.machine.mergeable; }),
      flag_row("machine.prefault", [](const Config& c) { return c.machine.prefault; }),
      {.key = "machine.uuid",
       .accepted = {{R"("8c1f1c1e-1b0a-4f5e-9d53-0f0c0A7B6f2d")",
                     [](const Config& c) {
                       return c.machine.uuid == std::array<std::uint8_t, 16>{
                                                    0x8c, 0x1f, 0x1c, 0x1e, 0x1b, 0x0a, 0x4f, 0x5e,
                                                    0x9d, 0x53, 0x0f, 0x0c, 0x0a, 0x7b, 0x6f, 0x2d};
                     }}},
       .refused = {{R"("")", kUuid},
                   {R"("8c1f1c1e1b0a4f5e9d530f0c0a7b6f2d")", kUuid},
                   {R"("8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2")", kUuid},
                   {R"("8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2dd")", kUuid},
                   {R"("8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2g")", kUuid},
                   {R"("8c1f1c1e-1b0a-4f5e-9d53+0f0c0a7b6f2d")", kUuid},
                   {R"("------------------------------------")", kUuid}}},
      {.key = "machine.cpu_features",
       .accepted = {{R"(["-avx512f", "+avx"])",
                     [](const Config& c) {
                       return c.machine.cpu_features ==
                              std::vector<std::string>{"-avx512f", "+avx"};
                     }},
                    {"[]", [](const Config& c) { return c.machine.cpu_features.empty(); }}},
       .refused = {{R"(["avx"])", "\"-name\""},
                   {R"(["-"])", "\"-name\""},
                   {R"([""])", "\"-name\""},
                   {R"(["-avx", 1])", "wants a list of texts"},
                   {R"(["-a\u0000"])", "NUL"},
                   {R"("-avx")", "wants a list of texts"}}},
      {.key = "machine.transport",
       .accepted =
           {{R"("auto")", [](const Config& c) { return c.machine.transport == Transport::kAuto; }},
            {R"("mmio")", [](const Config& c) { return c.machine.transport == Transport::kMmio; }},
            {R"("pci")", [](const Config& c) { return c.machine.transport == Transport::kPci; }}},
       .refused = {{R"("ccw")", "auto, mmio, pci"}, {"true", kText}}},
      {.key = "machine.io_threads",
       .accepted = {{"0", [](const Config& c) { return c.machine.io_threads == 0; }},
                    {"64", [](const Config& c) { return c.machine.io_threads == 64; }}},
       .refused = {{"65", "from 0 to 64"}, {"-1", "from 0 to 64"}, {R"("1")", "whole number"}}},
      {.key = "machine.on_reboot",
       .accepted = {{R"("exit")",
                     [](const Config& c) { return c.machine.on_reboot == OnReboot::kExit; }},
                    {R"("restart")",
                     [](const Config& c) { return c.machine.on_reboot == OnReboot::kRestart; }}},
       .refused = {{R"("pause")", "exit, restart"}, {"true", kText}}},
      flag_row("machine.track_dirty", [](const Config& c) { return c.machine.track_dirty; }),
  };
}

Row auto_row(const std::string& key, std::function<bool(const Config&)> get) {
  return {
      .key = key,
      .accepted = {{R"("auto")", get}, {R"("off")", [get](const Config& c) { return !get(c); }}},
      .refused = {{R"("on")", "auto, off"}, {"false", kText}}};
}

std::vector<Row> boot_rows() {
  return {
      path_row("boot.kernel", [](const Config& c) { return c.boot.kernel; }),
      path_row("boot.initramfs", [](const Config& c) { return c.boot.initramfs; }),
      path_row("boot.cache", [](const Config& c) { return c.boot.cache; }),
      auto_row("boot.unpack", [](const Config& c) { return c.boot.unpack; }),
      auto_row("boot.kaslr", [](const Config& c) { return c.boot.kaslr; }),
      text_row("boot.cmdline", [](const Config& c) { return c.boot.cmdline.value_or("default"); }),
      text_row("boot.append", [](const Config& c) { return c.boot.append; }),
  };
}

std::vector<Row> serial_rows() {
  const auto mode = [](SerialMode wanted) {
    return [wanted](const Config& c) { return c.serial.mode == wanted; };
  };
  return {
      {.key = "serial.mode",
       .accepted = {{R"("stdio")", mode(SerialMode::kStdio)},
                    {R"("file")", mode(SerialMode::kFile)},
                    {R"("pty")", mode(SerialMode::kPty)},
                    {R"("unix")", mode(SerialMode::kUnix)},
                    {R"("null")", mode(SerialMode::kNull)}},
       .refused = {{R"("tty")", "stdio, file, pty, unix, null"}, {"0", kText}}},
      path_row("serial.path", [](const Config& c) { return c.serial.path; }),
      flag_row("serial.append", [](const Config& c) { return c.serial.append; }),
  };
}

std::vector<Row> rng_rows() {
  std::vector<Row> rows =
      rate_limit_rows("rng.rate_limit",
                      [](const Config& c) -> const RateLimitConfig& { return c.rng->rate_limit; });
  rows.push_back({.key = "rng",
                  .accepted = {{"{}", [](const Config& c) { return c.rng.has_value(); }}},
                  .refused = {{"true", "wants a table"}, {R"("on")", "wants a table"}}});
  return rows;
}

std::vector<Row> all_rows() {
  std::vector<Row> rows = general_rows();
  for (const auto& more : {machine_rows(), boot_rows(), serial_rows(), ready_rows(), limits_rows(),
                           rng_rows(), disk_rows()}) {
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

/// The key with its value as a file's second line; above it what one of several tables wants.
std::string line_of(const std::string& key, const std::string& value) {
  const std::size_t dot = key.find('.');
  const ConfigKey* const table = find_config_key(key.substr(0, dot));
  const bool one_of_several =
      dot != std::string::npos && table != nullptr && table->kind == ConfigKey::Kind::kTables;
  return one_of_several ? fmt::format("[[{}]]\n{} = {}", table->path, key.substr(dot + 1), value)
                        : fmt::format("\n{} = {}", key, value);
}

TEST_CASE("config: every key takes what is right, and the value arrives") {
  for (const Row& row : all_rows()) {
    for (const Accepted& accepted : row.accepted) {
      INFO(row.key << " = " << accepted.value);
      Config config;
      const Result<> result = read(line_of(row.key, accepted.value), config);
      INFO((result ? "" : result.error().message()));
      REQUIRE(result);
      CHECK(accepted.arrived(config));
    }
  }
}

TEST_CASE("config: every key refuses what is wrong in one line that names file, line and key") {
  for (const Row& row : all_rows()) {
    for (const Refused& refused : row.refused) {
      INFO(row.key << " = " << refused.value);
      Config config;
      const Result<> result = read(line_of(row.key, refused.value), config);
      REQUIRE_FALSE(result);
      INFO(result.error().message());
      CHECK(result.error().code() == ErrorCode::kConfig);
      CHECK(result.error().message().starts_with("vm.toml:2: " + row.key + ": "));
      CHECK(result.error().message().find(refused.why) != std::string::npos);
      CHECK(result.error().message().find('\n') == std::string::npos);
    }
  }
}

TEST_CASE("config: no key is without a row here; those of later versions are refused by name") {
  const std::vector<Row> rows = all_rows();
  for (const ConfigKey& key : config_keys()) {
    INFO(key.path);
    const auto is_row = [&key](const Row& row) { return row.key == key.path; };
    CHECK(std::ranges::any_of(rows, is_row) == (key.set != nullptr));
    if (key.set != nullptr) {
      continue;
    }
    Config config;
    const Result<> result = read(line_of(std::string(key.path), "1"), config);
    REQUIRE_FALSE(result);
    CHECK(result.error().message() ==
          fmt::format("vm.toml:2: {}: not yet supported; remove it", key.path));
  }
}

}  // namespace
}  // namespace vireo
