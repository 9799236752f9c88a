// SPDX-License-Identifier: Apache-2.0
#include "src/disks.h"

#include <cerrno>
#include <utility>

#include <unistd.h>

#include <fmt/core.h>

#include "devices/block/overlay_backing.h"
#include "devices/block/overlay_disk.h"
#include "devices/block/overlay_file.h"
#include "devices/block/raw_disk.h"
#include "src/base/fd_path.h"
#include "src/cloud_seed.h"
#include "src/volume.h"

namespace vireo {

namespace {

Result<> open_raw(const DiskConfig& config, OpenDisk& opened) {
  TRY_ASSIGN(DiskFile file,
             open_disk_file(config.path, {.writable = !config.readonly, .direct = config.direct}));
  opened.disk = std::make_unique<RawDisk>(std::move(file));
  return {};
}

/// An overlay of nothing; false where another process was faster.
Result<bool> make_new_overlay(const DiskConfig& config) {
  TRY_ASSIGN(const OverlayBacking backing,
             open_backing(config.path, config.base_format == BaseFormat::kOverlay));
  TRY_ASSIGN(const OverlayBase base, overlay_base_of(absolute_path(config.path), backing));
  return make_overlay(config.overlay, base, backing.top());
}

Result<> open_over_base(const DiskConfig& config, OpenDisk& opened) {
  if (!is_inherited(config.overlay) && ::access(config.overlay.c_str(), F_OK) < 0 &&
      errno == ENOENT) {
    TRY_ASSIGN(opened.fresh, make_new_overlay(config));
    opened.made = MadeFile(opened.fresh ? config.overlay : "");
  }
  TRY_ASSIGN(OverlayFile overlay, open_overlay(config.overlay, true));
  const bool over_overlay = overlay.header.base_is_overlay;
  if (config.base_format != BaseFormat::kUnset &&
      over_overlay != (config.base_format == BaseFormat::kOverlay)) {
    return fail(ErrorCode::kConfig,
                fmt::format("base_format: {} was made over {}; wants \"{}\"", config.overlay,
                            over_overlay ? "another overlay" : "an image",
                            over_overlay ? "overlay" : "raw"));
  }
  TRY_ASSIGN(OverlayBacking backing, open_backing(config.path, over_overlay));
  TRY_ASSIGN(const OverlayBase base, overlay_base_of(absolute_path(config.path), backing));
  if (Result<> suits = check_overlay_base(overlay.header, base); !suits) {
    return std::unexpected(std::move(suits).error().context(config.overlay));
  }
  opened.disk = std::make_unique<OverlayDisk>(std::move(overlay), std::move(backing));
  return {};
}

Result<OpenDisk> open_disk(const DiskConfig& config, const MachineConfig& machine) {
  OpenDisk opened = {.settings = {.id = config.id,
                                  .readonly = config.readonly,
                                  .flush = config.cache == DiskCache::kWriteback,
                                  .queues = resolved_queues(config, machine),
                                  .rate_limit = config.rate_limit}};
  if (Result<> done =
          config.overlay.empty() ? open_raw(config, opened) : open_over_base(config, opened);
      !done) {
    return std::unexpected(std::move(done).error().context(fmt::format("disk \"{}\"", config.id)));
  }
  return opened;
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

MadeFile::~MadeFile() {
  if (!path_.empty()) {
    ::unlink(path_.c_str());
  }
}

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
