// SPDX-License-Identifier: Apache-2.0
#include "src/config_disks.h"

#include <algorithm>
#include <cctype>
#include <string_view>

#include <fmt/core.h>

#include "src/base/fd_path.h"

namespace vireo {

namespace {

/// As many as virtio-blk has for a serial number.
constexpr std::size_t kIdMax = 20;
constexpr std::int64_t kQueuesMax = 64;
constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kVolumeMin = 16 * kMiB;
constexpr std::uint64_t kVolumeMax = std::uint64_t{64} << 40;

Result<std::string> id_of(const ConfigValue& value) {
  TRY_ASSIGN(std::string id, value.string());
  if (!is_label(id, kIdMax)) {
    return value.wrong(
        fmt::format("{}: wants 1 to {} of A-Z a-z 0-9 . _ -, beginning with none of "
                    ". -",
                    quoted(id), kIdMax));
  }
  if (id == "cidata") {
    return value.wrong("\"cidata\" is the cloud-init seed's own; wants another");
  }
  return id;
}

/// Whether `text` is `pattern` with a hexadecimal digit for each x.
bool matches(std::string_view text, std::string_view pattern) {
  const auto fits = [](char c, char wanted) {
    return wanted == 'x' ? std::isxdigit(static_cast<unsigned char>(c)) != 0 : c == wanted;
  };
  return std::ranges::equal(text, pattern, fits);
}

}  // namespace

Result<> add_disk(const ConfigValue& /*value*/, Config& config) {
  config.disks.emplace_back();
  return {};
}

Result<> set_disk_id(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.disks.back().id, id_of(value));
  return {};
}

Result<> set_disk_path(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.disks.back().path, value.path());
  return {};
}

Result<> set_disk_root(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.disks.back().root, value.boolean());
  return {};
}

Result<> set_disk_partuuid(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::string text, value.string());
  if (!matches(text, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") && !matches(text, "xxxxxxxx-xx")) {
    return value.wrong(
        quoted(text) +
        ": wants a partition's UUID as blkid has it: \"8c1f1c1e-1b0a-4f5e-9d53-0f0c0a7b6f2d\", or "
        "\"8c1f1c1e-01\" in a DOS partition table");
  }
  config.disks.back().partuuid = text;
  return {};
}

Result<> set_disk_readonly(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.disks.back().readonly, value.boolean());
  return {};
}

Result<> set_disk_direct(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.disks.back().direct, value.boolean());
  return {};
}

Result<> set_disk_cache(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"writeback", "unsafe"}));
  config.disks.back().cache = static_cast<DiskCache>(index);
  return {};
}

Result<> set_disk_queues(const ConfigValue& value, Config& config) {
  unsigned& queues = config.disks.back().queues;
  if (const auto text = value.string(); text && *text == "cpus") {
    queues = 0;
    return {};
  }
  const auto count = value.integer(1, kQueuesMax);
  if (!count) {
    return value.wrong(fmt::format("wants a whole number from 1 to {}, or \"cpus\"", kQueuesMax));
  }
  queues = static_cast<unsigned>(*count);
  return {};
}

Result<> set_disk_overlay(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.disks.back().overlay, value.path());
  return {};
}

Result<> set_disk_base_format(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::size_t index, value.word({"raw", "overlay"}));
  config.disks.back().base_format = index == 0 ? BaseFormat::kRaw : BaseFormat::kOverlay;
  return {};
}

RateLimitConfig& disk_limit(Config& config) {
  return config.disks.back().rate_limit;
}

Result<> add_volume(const ConfigValue& /*value*/, Config& config) {
  config.volumes.emplace_back();
  return {};
}

Result<> set_volume_id(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.volumes.back().id, id_of(value));
  return {};
}

Result<> set_volume_path(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.volumes.back().path, value.path());
  return is_inherited(config.volumes.back().path)
             ? value.wrong(
                   "wants the name of a file, which a descriptor has not; open it as a disk")
             : Result<>();
}

Result<> set_volume_size(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(const std::uint64_t bytes, value.size());
  if (bytes < kVolumeMin || bytes > kVolumeMax || bytes % kMiB != 0) {
    return value.wrong(
        fmt::format("{} is out of range: wants whole MiB from 16M to 64T", format_size(bytes)));
  }
  config.volumes.back().size_bytes = bytes;
  return {};
}

Result<> set_cloud_init(const ConfigValue& /*value*/, Config& config) {
  config.cloud_init.emplace();
  return {};
}

Result<> set_seed(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.cloud_init->seed, value.path());
  return {};
}

Result<> set_user_data(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.cloud_init->user_data, value.string());
  return {};
}

Result<> set_meta_data(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.cloud_init->meta_data, value.string());
  return {};
}

Result<> set_network_config(const ConfigValue& value, Config& config) {
  TRY_ASSIGN(config.cloud_init->network_config, value.string());
  return {};
}

}  // namespace vireo
