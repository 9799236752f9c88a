// SPDX-License-Identifier: Apache-2.0
#include "src/disks.h"

#include <cerrno>
#include <utility>

#include <unistd.h>

#include <fmt/core.h>

#include "devices/block/overlay_disk.h"
#include "devices/block/overlay_file.h"
#include "devices/block/raw_disk.h"
#include "src/base/fd_path.h"
#include "src/cloud_seed.h"
#include "src/volume.h"

namespace vireo {

namespace {

Result<std::unique_ptr<Disk>> open_raw(const DiskConfig& config) {
  TRY_ASSIGN(DiskFile file,
             open_disk_file(config.path, {.writable = !config.readonly, .direct = config.direct}));
  return std::make_unique<RawDisk>(std::move(file));
}

Result<std::unique_ptr<Disk>> open_over_base(const DiskConfig& config) {
  TRY_ASSIGN(DiskFile base_file, open_disk_file(config.path, {}));
  TRY_ASSIGN(const OverlayBase base, overlay_base_of(absolute_path(config.path), base_file));
  if (!is_inherited(config.overlay) && ::access(config.overlay.c_str(), F_OK) < 0 &&
      errno == ENOENT) {
    TRY(make_overlay(config.overlay, base, base_file));
  }
  TRY_ASSIGN(OverlayFile overlay, open_overlay(config.overlay, true));
  if (Result<> suits = check_overlay_base(overlay.header, base); !suits) {
    return std::unexpected(std::move(suits).error().context(config.overlay));
  }
  return std::make_unique<OverlayDisk>(std::move(overlay), std::move(base_file));
}

Result<OpenDisk> open_disk(const DiskConfig& config, const MachineConfig& machine) {
  auto disk = config.overlay.empty() ? open_raw(config) : open_over_base(config);
  if (!disk) {
    return std::unexpected(std::move(disk).error().context(fmt::format("disk \"{}\"", config.id)));
  }
  return OpenDisk{.settings = {.id = config.id,
                               .readonly = config.readonly,
                               .flush = config.cache == DiskCache::kWriteback,
                               .queues = resolved_queues(config, machine),
                               .rate_limit = config.rate_limit},
                  .disk = std::move(*disk)};
}

Result<OpenDisk> open_volume(const VolumeConfig& config) {
  TRY(make_volume(config));
  auto file = open_disk_file(config.path, {.writable = true});
  if (!file) {
    return std::unexpected(
        std::move(file).error().context(fmt::format("volume \"{}\"", config.id)));
  }
  return OpenDisk{.settings = {.id = config.id},
                  .disk = std::make_unique<RawDisk>(std::move(*file))};
}

/// An ISO of the user's, or one of the texts.
Result<OpenDisk> open_seed(const CloudInitConfig& config, const std::string& name) {
  Result<DiskFile> file;
  if (!config.seed.empty()) {
    file = open_disk_file(config.seed, {});
  } else {
    TRY_ASSIGN(UniqueFd seed, make_cloud_seed(config, name));
    file = adopt_disk_file(std::move(seed), {});
  }
  if (!file) {
    return std::unexpected(std::move(file).error().context("cloud_init"));
  }
  return OpenDisk{.settings = {.id = "cidata", .readonly = true},
                  .disk = std::make_unique<RawDisk>(std::move(*file))};
}

}  // namespace

Result<std::vector<OpenDisk>> open_disks(const Config& config) {
  std::vector<OpenDisk> disks;
  for (const DiskConfig& disk : config.disks) {
    TRY_ASSIGN(OpenDisk opened, open_disk(disk, config.machine));
    disks.push_back(std::move(opened));
  }
  for (const VolumeConfig& volume : config.volumes) {
    TRY_ASSIGN(OpenDisk opened, open_volume(volume));
    disks.push_back(std::move(opened));
  }
  if (config.cloud_init) {
    TRY_ASSIGN(OpenDisk opened, open_seed(*config.cloud_init, config.name));
    disks.push_back(std::move(opened));
  }
  return disks;
}

}  // namespace vireo
