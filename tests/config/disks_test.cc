// SPDX-License-Identifier: Apache-2.0
// [[disk]], [[volume]] and [cloud_init]: their keys, what goes together, and the root disk.
#include <string>
#include <vector>

#include "src/config.h"
#include "src/device_arguments.h"
#include "tests/config/key_rows.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

Row id_row(const std::string& key, const std::function<std::string(const Config&)>& get) {
  constexpr const char* kRule = "1 to 20 of A-Z a-z 0-9 . _ -";
  const std::string longest(20, 'a');
  return {.key = key,
          .accepted = {{R"("a")", [get](const Config& c) { return get(c) == "a"; }},
                       {R"("web-1.A_z")", [get](const Config& c) { return get(c) == "web-1.A_z"; }},
                       {'"' + longest + '"',
                        [get, longest](const Config& c) { return get(c) == longest; }}},
          .refused = {{R"("")", kRule},
                      {R"(".a")", kRule},
                      {R"("-a")", kRule},
                      {R"("a b")", kRule},
                      {R"("a/b")", kRule},
                      {"\"" + longest + "a\"", kRule},
                      {R"("cidata")", "seed's own"},
                      {"1", kText}}};
}

/// Those with words and numbers.
std::vector<Row> disk_choice_rows() {
  const auto queues = [](unsigned count) {
    return [count](const Config& c) { return c.disks.back().queues == count; };
  };
  constexpr const char* kQueues = R"(wants a whole number from 1 to 64, or "cpus")";
  constexpr const char* kUuid = "wants a partition's UUID";
  const auto base = [](BaseFormat format) {
    return [format](const Config& c) { return c.disks.back().base_format == format; };
  };
  const auto uuid = [](const std::string& text) {
    return [text](const Config& c) { return c.disks.back().partuuid == text; };
  };
  return {
      {.key = "disk.base_format",
       .accepted = {{R"("raw")", base(BaseFormat::kRaw)},
                    {R"("overlay")", base(BaseFormat::kOverlay)}},
       .refused = {{R"("qcow2")", "is not one of raw, overlay"}, {R"("")", "is not one of"}}},
      {.key = "disk.partuuid",
       .accepted = {{R"("8c1f1c1e-1b0a-4f5e-9d53-0f0c0A7B6f2d")",
                     uuid("8c1f1c1e-1b0a-4f5e-9d53-0f0c0A7B6f2d")},
                    {R"("8c1f1c1e-0F")", uuid("8c1f1c1e-0F")}},
       .refused = {{R"("")", kUuid},
                   {R"("8c1f1c1e")", kUuid},
                   {R"("8c1f1c1e-")", kUuid},
                   {R"("8c1f1c1e-1")", kUuid},
                   {R"("8c1f1c1e-001")", kUuid},
                   {R"("8c1f1c1g-01")", kUuid},
                   {R"("8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2")", kUuid},
                   {R"("8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2dd")", kUuid},
                   {R"("8c1f1c1e-1b0a-4f5e-9d53+0f0c0a7b6f2d")", kUuid},
                   {"1", kText}}},
      {.key = "disk.cache",
       .accepted = {{R"("writeback")",
                     [](const Config& c) { return c.disks.back().cache == DiskCache::kWriteback; }},
                    {R"("unsafe")",
                     [](const Config& c) { return c.disks.back().cache == DiskCache::kUnsafe; }}},
       .refused = {{R"("none")", "writeback, unsafe"}, {"true", kText}}},
      {.key = "disk.queues",
       .accepted = {{"1", queues(1)}, {"64", queues(64)}, {R"("cpus")", queues(0)}},
       .refused = {{"0", kQueues}, {"65", kQueues}, {R"("2")", kQueues}, {"true", kQueues}}},
      {.key = "disk",
       .accepted = {{"[]", [](const Config& c) { return c.disks.empty(); }},
                    {R"([{ id = "a" }, { id = "b" }])",
                     [](const Config& c) { return c.disks.size() == 2 && c.disks[1].id == "b"; }}},
       .refused = {{"{}", "wants [[disk]] above"},
                   {"1", "wants [[disk]] above"},
                   {"[1]", "wants [[disk]] above"},
                   {R"([{ id = "a" }, 1])", "wants [[disk]] above"}}},
  };
}

std::vector<Row> volume_rows() {
  constexpr const char* kRange = "whole MiB from 16M to 64T";
  const auto is = [](std::uint64_t mib) {
    return [mib](const Config& c) { return c.volumes.back().size_bytes == mib << 20; };
  };
  return {
      {.key = "volume",
       .accepted = {{"[{}, {}]", [](const Config& c) { return c.volumes.size() == 2; }}},
       .refused = {{"{}", "wants [[volume]] above"}}},
      id_row("volume.id", [](const Config& c) { return c.volumes.back().id; }),
      {.key = "volume.path",
       .accepted = {{R"("a b")", [](const Config& c) { return c.volumes.back().path == "a b"; }}},
       .refused = {{R"("")", "wants a path"}, {R"("fd:3")", "a descriptor has not"}, {"1", kText}}},
      {.key = "volume.size",
       .accepted = {{R"("16M")", is(16)}, {R"("64T")", is(std::uint64_t{64} << 20)}},
       .refused = {{R"("15M")", kRange},
                   {R"("65T")", kRange},
                   {R"("17000K")", kRange},
                   {"16", "binary suffix"}}},
  };
}

std::vector<Row> cloud_init_rows() {
  return {
      {.key = "cloud_init",
       .accepted = {{"{}", [](const Config& c) { return c.cloud_init.has_value(); }}},
       .refused = {{"true", "wants a table"}, {"[{}]", "wants a table"}}},
      path_row("cloud_init.seed", [](const Config& c) { return c.cloud_init->seed; }),
      text_row("cloud_init.user_data", [](const Config& c) { return c.cloud_init->user_data; }),
      text_row("cloud_init.meta_data", [](const Config& c) { return c.cloud_init->meta_data; }),
      text_row("cloud_init.network_config",
               [](const Config& c) { return c.cloud_init->network_config; }),
  };
}

}  // namespace

std::vector<Row> disk_rows() {
  std::vector<Row> rows = {
      id_row("disk.id", [](const Config& c) { return c.disks.back().id; }),
      path_row("disk.path", [](const Config& c) { return c.disks.back().path; }),
      path_row("disk.overlay", [](const Config& c) { return c.disks.back().overlay; }),
      flag_row("disk.root", [](const Config& c) { return c.disks.back().root; }),
      flag_row("disk.readonly", [](const Config& c) { return c.disks.back().readonly; }),
      flag_row("disk.direct", [](const Config& c) { return c.disks.back().direct; }),
  };
  for (const auto& more :
       {disk_choice_rows(), volume_rows(), cloud_init_rows(),
        rate_limit_rows("disk.rate_limit", [](const Config& c) -> const RateLimitConfig& {
          return c.disks.back().rate_limit;
        })}) {
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

namespace {

constexpr const char* kKernel = "boot.kernel = \"k\"\n";

std::string refusal(const std::string& text) {
  Config config;
  Result<> result = read_config_text(kKernel + text, "vm.toml", config);
  if (result) {
    result = validate(config);
  }
  REQUIRE_FALSE(result);
  CHECK(result.error().code() == ErrorCode::kConfig);
  return result.error().message();
}

Config valid(const std::string& text) {
  Config config;
  const Result<> result = read_config_text(kKernel + text, "vm.toml", config);
  INFO((result ? "" : result.error().message()));
  REQUIRE(result);
  const Result<> whole = validate(config);
  INFO((whole ? "" : whole.error().message()));
  REQUIRE(whole);
  return config;
}

/// A disk of this id, with more keys.
std::string disk(const std::string& id, const std::string& keys = "") {
  return "[[disk]]\nid = \"" + id + "\"\npath = \"" + id + ".img\"\n" + keys + "\n";
}

TEST_CASE("disks: an error names the line and, of several, which disk") {
  CHECK(refusal(disk("a") + disk("b", "queues = 0"))
            .starts_with("vm.toml:9: disk \"b\": queues: wants a whole number"));
  CHECK(refusal(disk("a", "rate_limit.ops.size = 0"))
            .starts_with("vm.toml:5: disk \"a\": rate_limit.ops.size: wants more than 0"));
  CHECK(refusal(disk("a", "rate_limit = 1")) == "vm.toml:5: disk \"a\": rate_limit: wants a table");
  CHECK(refusal(disk("a", "paht = 1")) ==
        "vm.toml:5: unknown key \"disk.paht\"; did you mean \"disk.path\"?");
  CHECK(refusal("[[volume]]\nid = \"v\"\nguest_path = \"/a\"\n") ==
        "vm.toml:4: volume \"v\": guest_path: not yet supported; remove it");
  CHECK(refusal("[disk]\nid = \"a\"\n") ==
        "vm.toml:2: disk: wants [[disk]] above the keys of each");
  CHECK(refusal(disk("a") + "[rng]\nrate_limit.ops.size = 0\n")
            .starts_with("vm.toml:7: rng.rate_limit.ops.size: "));
}

TEST_CASE("disks: what is missing or does not go together is refused by name") {
  CHECK(refusal("[[disk]]\n").starts_with("disk.id: missing"));
  CHECK(refusal("[[disk]]\nid = \"a\"\n").starts_with("disk \"a\": path: missing"));
  CHECK(refusal("[[volume]]\n").starts_with("volume.id: missing"));
  CHECK(refusal("[[volume]]\nid = \"a\"\n").starts_with("volume \"a\": path: missing"));
  CHECK(
      refusal("[[volume]]\nid = \"a\"\npath = \"p\"\n").starts_with("volume \"a\": size: missing"));
  CHECK(refusal(disk("a") + disk("a")).starts_with("disk \"a\": id: given twice"));
  CHECK(refusal(disk("a") + "[[volume]]\nid = \"a\"\npath = \"p\"\nsize = \"1G\"\n")
            .starts_with("volume \"a\": id: given twice"));
  CHECK(refusal(disk("a", "root = true") + disk("b", "root = true"))
            .starts_with("disk \"b\": root: disk \"a\" is the root disk"));
  CHECK(refusal(disk("a", "partuuid = \"8c1f1c1e-01\"")).starts_with("disk \"a\": partuuid: "));
  CHECK(
      refusal(disk("a", "overlay = \"o\"\nreadonly = true")).starts_with("disk \"a\": readonly: "));
  CHECK(refusal(disk("a", "overlay = \"o\"\ndirect = true")).starts_with("disk \"a\": direct: "));
  CHECK(refusal(disk("a", "base_format = \"raw\"")).starts_with("disk \"a\": base_format: "));
  CHECK(refusal(disk("a", "rate_limit.ops.size = 5"))
            .starts_with("disk \"a\": rate_limit.ops: wants both"));
  for (const std::string key : {"cmdline", "append"}) {
    const std::string message =
        refusal("boot." + key + " = \"quiet root=/dev/sda1\"\n" + disk("a", "root = true"));
    CHECK(message.starts_with("boot." + key + ": its root= and root = true of disk \"a\""));
    valid("boot." + key + " = \"quiet root=/dev/sda1\"\n" + disk("a"));
    valid("boot." + key + " = \"quiet nroot=1\"\n" + disk("a", "root = true"));
  }
}

TEST_CASE("disks: a seed is an ISO or texts, among which is the user's") {
  CHECK(refusal("[cloud_init]\n").starts_with("cloud_init.user_data: missing"));
  CHECK(refusal("cloud_init.meta_data = \"a\"\n").starts_with("cloud_init.user_data: missing"));
  for (const std::string key : {"user_data", "meta_data", "network_config"}) {
    CHECK(refusal("cloud_init = { seed = \"a\", " + key + " = \"b\" }\n")
              .starts_with("cloud_init.seed: "));
  }
  for (const std::string text : {"hostname: web-1", "# a comment", "\\n", "x #cloud-config"}) {
    CHECK(refusal("cloud_init.user_data = \"" + text + "\"\n")
              .find("would ignore it; wants #cloud") != std::string::npos);
  }
  for (const std::string text :
       {"#cloud-config", "#Cloud-Config-archive\\n[]", "\\n  #!/bin/sh", "#include\\nhttp://a/b",
        "#cloud-boothook", "#part-handler", "## template: jinja\\n#cloud-config",
        "Content-Type: multipart/mixed\\nMIME-Version: 1.0"}) {
    valid("cloud_init.user_data = \"" + text + "\"\n");
  }
  CHECK(valid("cloud_init.seed = \"a\"\n").cloud_init->seed == "a");
  CHECK(valid("cloud_init.user_data = \"#!/bin/sh\\n\"\n").cloud_init->user_data == "#!/bin/sh\n");
}

TEST_CASE("disks: the resolved print is the same configuration again") {
  const std::string text =
      disk("a",
           "root = true\npartuuid = \"8c1f1c1e-01\"\nreadonly = true\ndirect = true\n"
           "cache = \"unsafe\"\nqueues = \"cpus\"\n"
           "[disk.rate_limit.ops]\nsize = 5\nrefill = \"1s\"\nburst = 7") +
      disk("b",
           "overlay = \"o,'\\\"\"\nbase_format = \"overlay\"\nqueues = 3\n"
           "rate_limit = { bandwidth = { size = \"1M\", refill = \"10ms\" } }") +
      "[[volume]]\nid = \"v\"\npath = \"p\"\nsize = \"1536M\"\n"
      "[[volume]]\nid = \"w\"\npath = \"q\"\nsize = \"16M\"\n"
      "[cloud_init]\nuser_data = \"\"\"#cloud-config\n\ta: \\u00e4\n\"\"\"\n"
      "meta_data = \"\\n\"\nnetwork_config = \"''\"\n";
  const Config config = valid(text);
  const std::string printed = to_toml(config);
  INFO(printed);
  Config again;
  REQUIRE(read_config_text(printed, "printed", again));
  REQUIRE(validate(again));
  CHECK(again.disks == config.disks);
  CHECK(again.volumes == config.volumes);
  CHECK(again.cloud_init == config.cloud_init);
  CHECK(to_toml(again) == printed);
  CHECK(to_json(config).find("\"queues\" : \"cpus\"") != std::string::npos);
  CHECK(to_toml(valid("")).find("disk") == std::string::npos);
}

TEST_CASE("disks: several queues, or more devices than lines, bring PCI where nothing is said") {
  CHECK_FALSE(over_pci(valid(disk("a"))));
  CHECK(over_pci(valid(disk("a") + disk("b", "queues = 2"))));
  CHECK_FALSE(over_pci(valid(disk("a", "queues = \"cpus\""))));
  CHECK(over_pci(valid("machine.cpus = 2\n" + disk("a", "queues = \"cpus\""))));
  CHECK_FALSE(over_pci(valid("machine.transport = \"mmio\"\n" + disk("a", "queues = 2"))));
  std::string many;
  for (int i = 0; i < 16; ++i) {
    many += disk("d" + std::to_string(i));
  }
  many += "[[volume]]\nid = \"v\"\npath = \"p\"\nsize = \"1G\"\n[cloud_init]\nseed = \"a\"\n";
  CHECK_FALSE(over_pci(valid(many)));
  CHECK(over_pci(valid(many + "[rng]\n")));
}

TEST_CASE("root disk: Linux's names of virtio disks") {
  CHECK(virtio_disk_name(0) == "vda");
  CHECK(virtio_disk_name(25) == "vdz");
  CHECK(virtio_disk_name(26) == "vdaa");
  CHECK(virtio_disk_name(26 + 25) == "vdaz");
  CHECK(virtio_disk_name(26 + 26) == "vdba");
  CHECK(virtio_disk_name(26 + 26 * 26 - 1) == "vdzz");
  CHECK(virtio_disk_name(26 + 26 * 26) == "vdaaa");
}

TEST_CASE("root disk: the kernel is told where its root file system is") {
  CHECK(root_arguments(valid("")).empty());
  CHECK(root_arguments(valid(disk("a"))).empty());
  CHECK(root_arguments(valid(disk("a", "root = true"))) == "root=/dev/vda rw");
  CHECK(root_arguments(valid(disk("a") + disk("b", "root = true\nreadonly = true"))) ==
        "root=/dev/vdb ro");
  CHECK(root_arguments(valid(disk("a", "root = true\npartuuid = \"8c1f1c1e-01\""))) ==
        "root=PARTUUID=8c1f1c1e-01 rw");
  CHECK(root_arguments(valid(disk("a", "root = true\noverlay = \"o\""))) == "root=/dev/vda rw");
  std::string many;
  for (int i = 0; i < 27; ++i) {
    many += disk("d" + std::to_string(i), i == 26 ? "root = true" : "");
  }
  CHECK(root_arguments(valid(many)) == "root=/dev/vdaa rw");
}

}  // namespace
}  // namespace vireo
