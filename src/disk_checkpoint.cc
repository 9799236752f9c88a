// SPDX-License-Identifier: Apache-2.0
#include "src/disk_checkpoint.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <fmt/core.h>

#include "devices/block/overlay_disk.h"
#include "src/base/fd_path.h"
#include "src/base/log.h"
#include "src/config_value.h"
#include "src/saved_machine.h"

namespace vireo {

namespace {

std::unexpected<Error> wrong(const std::string& id, const std::string& what) {
  return fail(ErrorCode::kConfig, fmt::format("disk {}: {}", quoted(id), what));
}

/// An id has one file, and is that of a disk that is written.
Result<> check_files(std::span<const CheckpointFile> files, DeviceSet& devices) {
  const std::vector<const BlockDevice*> disks = devices.disks();
  for (const CheckpointFile& file : files) {
    const auto disk = std::ranges::find(disks, file.id, &BlockDevice::id);
    if (disk == disks.end() || (*disk)->readonly()) {
      return wrong(file.id, "disk_files: no disk that this VM writes");
    }
    if (std::ranges::count(files, file.id, &CheckpointFile::id) > 1) {
      return wrong(file.id, "disk_files: wants one file");
    }
    TRY_ASSIGN(const std::uint64_t size, regular_file_size(file.file.get()));
    if (size != 0 || (::fcntl(file.file.get(), F_GETFL) & O_ACCMODE) != O_RDWR) {
      return wrong(file.id, "disk_files: wants an empty file, open for reading and writing");
    }
  }
  return {};
}

}  // namespace

Result<DiskCheckpoint> DiskCheckpoint::create(DisksAtSnapshot mode,
                                              std::vector<CheckpointFile> files, DeviceSet& devices,
                                              const Config& config, const std::string& directory) {
  TRY(check_files(files, devices));
  if (devices.changing_disks()) {
    return fail(ErrorCode::kConfig, "a change of a disk is not done yet; ask again later");
  }
  DiskCheckpoint checkpoint(mode, devices);
  for (const BlockDevice* const disk : devices.disks()) {
    if (!disk->readonly()) {
      TRY(checkpoint.add(*disk, files, config, directory));
    }
  }
  return checkpoint;
}

Result<> DiskCheckpoint::add(const BlockDevice& disk, std::vector<CheckpointFile>& files,
                             const Config& config, const std::string& directory) {
  const std::string& id = disk.id();
  Part part = {.id = id,
               .written = disk.disk().written_file(),
               .overlay = disk.disk().base_file() >= 0,
               .size = disk.disk().size()};
  const auto table = std::ranges::find(config.disks, id, &DiskConfig::id);
  if (table != config.disks.end()) {
    part.path = part.overlay ? table->overlay : table->path;
  } else {
    part.path = std::ranges::find(config.volumes, id, &VolumeConfig::id)->path;
  }
  part.path = absolute_in(directory, part.path);
  if (mode_ != DisksAtSnapshot::kNone) {
    const auto file = std::ranges::find(files, id, &CheckpointFile::id);
    if (file == files.end()) {
      return wrong(id, "disk_files: none for it; wants an empty file for its overlay or its copy");
    }
    part.new_path = std::move(file->path);
    if (mode_ == DisksAtSnapshot::kFreeze) {
      TRY(add_overlay(part, std::move(file->file)));
    } else {
      part.copy = std::move(file->file);
    }
  }
  parts_.push_back(std::move(part));
  return {};
}

Result<> DiskCheckpoint::add_overlay(Part& part, UniqueFd file) const {
  if (is_inherited(part.path)) {
    return wrong(part.id,
                 "freeze: it came as an open descriptor, and what lies below an overlay wants a "
                 "name; give its path, or use \"reflink\"");
  }
  if (!devices_->one_thread_serves(part.id)) {
    return wrong(part.id,
                 "freeze: several threads serve its queues, and an overlay has one; wants "
                 "disk.queues = 1 or machine.io_threads = 1, or \"reflink\"");
  }
  auto made = begin_overlay(
      std::move(file),
      {.path = part.path, .size = part.size, .mtime_ns = 0, .is_overlay = part.overlay});
  if (!made) {
    return std::unexpected(std::move(made).error().context(part.new_path));
  }
  part.made = std::move(*made);
  return {};
}

Result<> DiskCheckpoint::prepare() {
  switch (mode_) {
    case DisksAtSnapshot::kNone:
      return {};
    case DisksAtSnapshot::kReflink:
      return clone_all();
    case DisksAtSnapshot::kFreeze:
      TRY(write_headers());
      return sync();
  }
  return {};
}

Result<> DiskCheckpoint::clone_all() const {
  for (const Part& part : parts_) {
    if (::ioctl(part.copy.get(), FICLONE, part.written) == 0) {
      continue;
    }
    const bool cannot = errno == EOPNOTSUPP || errno == EXDEV || errno == EINVAL || errno == ENOTTY;
    if (!cannot) {
      return fail_errno(errno,
                        fmt::format("disk {}: reflink into {}", quoted(part.id), part.new_path));
    }
    return wrong(part.id,
                 fmt::format("reflink: its blocks cannot be shared with {}; wants both on one file "
                             "system that can (XFS, btrfs), or \"freeze\"",
                             part.new_path));
  }
  return {};
}

/// Each tells when its base was last written, which is not any more.
Result<> DiskCheckpoint::write_headers() {
  for (Part& part : parts_) {
    if (mode_ != DisksAtSnapshot::kFreeze) {
      continue;
    }
    TRY_ASSIGN(const SavedDisks::Disk now, save_disk(part.id, part.written));
    part.made.header.base_mtime_ns = static_cast<std::int64_t>(now.modified_ns);
    if (Result<> written = write_overlay_header(part.made); !written) {
      return std::unexpected(std::move(written).error().context(part.new_path));
    }
  }
  return {};
}

Result<SavedDisks> DiskCheckpoint::take() {
  if (mode_ == DisksAtSnapshot::kReflink) {
    TRY(clone_all());
  }
  TRY(write_headers());
  SavedDisks saved;
  for (const Part& part : parts_) {
    TRY_ASSIGN(SavedDisks::Disk disk,
               save_disk(part.id, part.copy ? part.copy.get() : part.written));
    disk.overlay = part.overlay;
    disk.frozen = mode_ == DisksAtSnapshot::kFreeze;
    saved.disks.push_back(std::move(disk));
  }
  return saved;
}

namespace {

/// The table of a disk; a volume becomes one.
DiskConfig& table_of(Config& config, const std::string& id) {
  auto disk = std::ranges::find(config.disks, id, &DiskConfig::id);
  if (disk == config.disks.end()) {
    // All of them, in order: the guest has volumes behind disks.
    for (const VolumeConfig& volume : std::exchange(config.volumes, {})) {
      config.disks.push_back({.id = volume.id, .path = volume.path});
    }
    disk = std::ranges::find(config.disks, id, &DiskConfig::id);
  }
  return *disk;
}

}  // namespace

Config DiskCheckpoint::saved_config(const Config& config) const {
  Config saved = config;
  for (const Part& part : parts_) {
    if (mode_ == DisksAtSnapshot::kFreeze) {
      DiskConfig& disk = table_of(saved, part.id);
      disk.path = part.path;
      disk.overlay.clear();
      disk.base_format = part.overlay ? BaseFormat::kOverlay : BaseFormat::kUnset;
      disk.direct = false;
    } else if (mode_ == DisksAtSnapshot::kReflink) {
      const auto volume = std::ranges::find(saved.volumes, part.id, &VolumeConfig::id);
      if (volume != saved.volumes.end()) {
        volume->path = part.new_path;
        continue;
      }
      DiskConfig& disk = table_of(saved, part.id);
      (part.overlay ? disk.overlay : disk.path) = part.new_path;
    }
  }
  return saved;
}

void DiskCheckpoint::go_on(Config& config) {
  for (Part& part : parts_) {
    if (mode_ != DisksAtSnapshot::kFreeze) {
      continue;
    }
    devices_->freeze_disk(part.id, std::move(part.made));
    DiskConfig& disk = table_of(config, part.id);
    disk.path = part.path;
    disk.overlay = part.new_path;
    disk.base_format = part.overlay ? BaseFormat::kOverlay : BaseFormat::kRaw;
    disk.direct = false;
    log_info("block", "disk {}: is frozen, and goes on in {}", part.id, part.new_path);
  }
}

std::string DiskCheckpoint::still_frozen() const {
  std::string text;
  if (mode_ == DisksAtSnapshot::kFreeze) {
    for (const Part& part : parts_) {
      text +=
          fmt::format("; disk {} stays frozen, and goes on in {}", quoted(part.id), part.new_path);
    }
  }
  return text;
}

Result<> DiskCheckpoint::sync() const {
  for (const Part& part : parts_) {
    for (const int file : {part.written, part.copy.get(), part.made.file.fd.get()}) {
      if (file >= 0 && ::fsync(file) < 0) {
        return fail_errno(errno, fmt::format("disk {}: writing it to its disk", quoted(part.id)));
      }
    }
  }
  return {};
}

}  // namespace vireo
