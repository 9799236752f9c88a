// SPDX-License-Identifier: Apache-2.0
// What concerns several keys of the configuration at once.
#include <algorithm>
#include <array>
#include <cctype>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "boot/boot_params.h"
#include "src/base/fd_path.h"
#include "src/config.h"
#include "src/config_rate_limit.h"
#include "src/config_value.h"

namespace vireo {

Result<> validate_rate_limit(const RateLimitConfig& limit, std::string_view key) {
  for (const auto& [name, bucket] :
       {std::pair("bandwidth", limit.bandwidth), std::pair("ops", limit.ops)}) {
    if (bucket && (bucket->size == 0 || bucket->refill_ns == 0)) {
      return fail(ErrorCode::kConfig, fmt::format("{}.{}: wants both size and refill", key, name));
    }
  }
  return {};
}

namespace {

Result<> validate_serial(const Config& config) {
  const SerialMode mode = config.serial.mode;
  const bool wants_path = mode == SerialMode::kFile || mode == SerialMode::kUnix;
  if (wants_path == config.serial.path.empty()) {
    return fail(ErrorCode::kConfig,
                wants_path ? "serial.path: missing; modes file and unix want it"
                           : "serial.path: only modes file and unix take one; remove it");
  }
  if (config.serial.append && mode != SerialMode::kFile) {
    return fail(ErrorCode::kConfig, "serial.append: only mode file takes it; remove it");
  }
  if (config.serial.append && is_inherited(config.serial.path)) {
    return fail(ErrorCode::kConfig,
                "serial.append: whoever opened the descriptor has chosen it already; remove it");
  }
  if (mode == SerialMode::kNull && config.ready.when == ReadyConfig::When::kSerial) {
    return fail(ErrorCode::kConfig,
                "ready.when: waits for text on the console, and serial.mode = \"null\" has none; "
                "wait for a mark, or give the console another mode");
  }
  return {};
}

/// `table`: "disk" or "volume".
std::unexpected<Error> wrong(std::string_view table, const std::string& id, std::string_view what) {
  return fail(ErrorCode::kConfig, id.empty() ? fmt::format("{}.{}", table, what)
                                             : fmt::format("{} {}: {}", table, quoted(id), what));
}

Result<> validate_disk(const DiskConfig& disk) {
  if (disk.id.empty()) {
    return wrong("disk", disk.id, "id: missing; each disk wants one of its own");
  }
  if (disk.path.empty()) {
    return wrong("disk", disk.id, "path: missing; name an image or a block device");
  }
  if (!disk.partuuid.empty() && !disk.root) {
    return wrong("disk", disk.id,
                 "partuuid: names the root file system's partition, and root is not set; set root "
                 "= true, or remove it");
  }
  if (!disk.overlay.empty() && disk.readonly) {
    return wrong("disk", disk.id,
                 "readonly: an overlay is there to be written to; remove one of the two");
  }
  if (!disk.overlay.empty() && disk.direct) {
    return wrong("disk", disk.id,
                 "direct: not yet supported with an overlay, which wants the host's page cache; "
                 "remove one of the two");
  }
  if (disk.overlay.empty() && disk.base_format != BaseFormat::kUnset) {
    return wrong("disk", disk.id,
                 "base_format: says what lies below an overlay; name a file for it (overlay), or "
                 "remove it");
  }
  return validate_rate_limit(disk.rate_limit, fmt::format("disk {}: rate_limit", quoted(disk.id)));
}

Result<> validate_volume(const VolumeConfig& volume) {
  if (volume.id.empty()) {
    return wrong("volume", volume.id, "id: missing; each volume wants one of its own");
  }
  if (volume.path.empty()) {
    return wrong("volume", volume.id, "path: missing; name the file that it is kept in");
  }
  if (volume.size_bytes == 0) {
    return wrong("volume", volume.id, "size: missing; wants a size such as \"1G\"");
  }
  return {};
}

Result<> validate_ids(const Config& config) {
  std::vector<std::string_view> ids;
  const auto add = [&ids](std::string_view table, const std::string& id) -> Result<> {
    if (std::ranges::find(ids, id) != ids.end()) {
      return wrong(table, id, "id: given twice; each disk and volume wants one of its own");
    }
    ids.push_back(id);
    return {};
  };
  for (const DiskConfig& disk : config.disks) {
    TRY(add("disk", disk.id));
  }
  for (const VolumeConfig& volume : config.volumes) {
    TRY(add("volume", volume.id));
  }
  return {};
}

Result<> validate_root(const Config& config) {
  const auto is_root = &DiskConfig::root;
  const auto root = std::ranges::find_if(config.disks, is_root);
  if (root == config.disks.end()) {
    return {};
  }
  const auto other = std::find_if(root + 1, config.disks.end(), std::mem_fn(is_root));
  if (other != config.disks.end()) {
    return wrong("disk", other->id,
                 fmt::format("root: disk {} is the root disk; only one can be", quoted(root->id)));
  }
  for (const auto& [key, text] : {std::pair("boot.cmdline", config.boot.cmdline.value_or("")),
                                  std::pair("boot.append", config.boot.append)}) {
    if (has_word(text, "root=")) {
      return fail(ErrorCode::kConfig,
                  fmt::format("{}: its root= and root = true of disk {} both name the root file "
                              "system; remove one of the two",
                              key, quoted(root->id)));
    }
  }
  return {};
}

/// Whether cloud-init knows what to do with the text: it has its kind in front, or is MIME.
bool is_user_data(std::string_view text) {
  constexpr std::size_t kHead = 4096;  // as far as cloud-init looks
  std::string head(text.substr(0, kHead));
  std::ranges::transform(head, head.begin(), [](unsigned char c) { return std::tolower(c); });
  const std::size_t start = head.find_first_not_of(" \t\r\n");
  constexpr std::array<std::string_view, 6> kKinds = {
      "#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "## template: jinja"};
  return head.find("mime-version:") != std::string::npos ||
         (start != std::string::npos && std::ranges::any_of(kKinds, [&](std::string_view kind) {
            return std::string_view(head).substr(start).starts_with(kind);
          }));
}

Result<> validate_cloud_init(const CloudInitConfig& cloud_init) {
  const bool texts = !cloud_init.user_data.empty() || !cloud_init.meta_data.empty() ||
                     !cloud_init.network_config.empty();
  if (!cloud_init.seed.empty() && texts) {
    return fail(ErrorCode::kConfig,
                "cloud_init.seed: an ISO of yours, and the texts make another; remove either");
  }
  if (cloud_init.seed.empty() && cloud_init.user_data.empty()) {
    return fail(ErrorCode::kConfig,
                "cloud_init.user_data: missing; wants a text such as \"#cloud-config\\n…\", or "
                "cloud_init.seed an ISO of yours");
  }
  if (cloud_init.seed.empty() && !is_user_data(cloud_init.user_data)) {
    return fail(ErrorCode::kConfig,
                fmt::format("cloud_init.user_data: {}: cloud-init would ignore it; wants "
                            "#cloud-config, #!, #include, #cloud-boothook, #part-handler or "
                            "## template: jinja at its beginning, or a MIME message",
                            quoted(cloud_init.user_data)));
  }
  return {};
}

}  // namespace

Result<> validate(const Config& config) {
  if (config.boot.kernel.empty()) {
    return fail(ErrorCode::kConfig,
                "boot.kernel: missing; name a bzImage or an ELF vmlinux (--kernel PATH)");
  }
  const arch::CpuTopology topology = resolved_topology(config.machine);
  if (topology.sockets * topology.cores * topology.threads != config.machine.cpus) {
    return fail(
        ErrorCode::kConfig,
        fmt::format("machine.topology: {} sockets x {} cores x {} threads are not "
                    "machine.cpus = {}",
                    topology.sockets, topology.cores, topology.threads, config.machine.cpus));
  }
  TRY(validate_serial(config));
  if (!has_acpi(config) && over_pci(config)) {
    return fail(ErrorCode::kConfig,
                "machine.transport: \"pci\" is found by ACPI, and the command line says acpi=off; "
                "remove one of the two");
  }
  if (config.rng) {
    TRY(validate_rate_limit(config.rng->rate_limit, "rng.rate_limit"));
  }
  for (const DiskConfig& disk : config.disks) {
    TRY(validate_disk(disk));
  }
  for (const VolumeConfig& volume : config.volumes) {
    TRY(validate_volume(volume));
  }
  TRY(validate_ids(config));
  TRY(validate_root(config));
  if (config.cloud_init) {
    TRY(validate_cloud_init(*config.cloud_init));
  }
  if (config.limits.cgroup.empty() && !config.limits.cgroup_files.empty()) {
    return fail(ErrorCode::kConfig, fmt::format("limits.cgroup: missing; {} is set in one",
                                                config.limits.cgroup_files.begin()->first));
  }
  const std::vector<std::vector<unsigned>>& affinity = config.limits.cpu_affinity;
  if (affinity.size() > 1 && affinity.size() != config.machine.cpus) {
    return fail(ErrorCode::kConfig,
                fmt::format("limits.cpu_affinity: {} lists for {} vCPUs; wants one for all, or one "
                            "for each",
                            affinity.size(), config.machine.cpus));
  }
  return {};
}

}  // namespace vireo
