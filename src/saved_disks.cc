// SPDX-License-Identifier: Apache-2.0
#include "src/saved_disks.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <ctime>

#include <sys/stat.h>
#include <sys/xattr.h>

#include <fmt/core.h>

#include "src/base/log.h"

namespace vireo {

namespace {

constexpr const char* kAttribute = "user.vireo.generation";

std::uint64_t nanoseconds(const timespec& time) {
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(time.tv_nsec);
}

/// 0 where it has none, or the file system has no attributes.
std::uint64_t generation_of(int file) {
  std::array<char, 24> text = {};
  const ssize_t size = ::fgetxattr(file, kAttribute, text.data(), text.size());
  std::uint64_t generation = 0;
  if (size > 0) {
    std::from_chars(text.data(), text.data() + size, generation);
  }
  return generation;
}

}  // namespace

Result<SavedDisks::Disk> save_disk(const std::string& id, int file) {
  struct stat found = {};
  if (::fstat(file, &found) < 0) {
    return fail_errno(errno, fmt::format("disk \"{}\"", id));
  }
  return SavedDisks::Disk{.id = id,
                          .block_device = S_ISBLK(found.st_mode),
                          .inode = found.st_ino,
                          .bytes = static_cast<std::uint64_t>(found.st_size),
                          .modified_ns = nanoseconds(found.st_mtim),
                          .changed_ns = nanoseconds(found.st_ctim),
                          .generation = generation_of(file)};
}

namespace {

/// What of the disk is another one now; empty: nothing.
std::string_view difference(const SavedDisks::Disk& saved, const SavedDisks::Disk& now) {
  if (saved.block_device != now.block_device || saved.inode != now.inode) {
    return "is another file";
  }
  if (now.block_device) {
    return "";
  }
  if (saved.bytes != now.bytes) {
    return "has another size";
  }
  if (saved.generation != now.generation || saved.modified_ns != now.modified_ns) {
    return "was written to";
  }
  return saved.changed_ns != now.changed_ns ? "was changed" : "";
}

}  // namespace

void advance_generation(int file) {
  const std::string text = fmt::format("{}", generation_of(file) + 1);
  if (::fsetxattr(file, kAttribute, text.data(), text.size(), 0) < 0) {
    // Without attributes the times of the file have to do. The kernel's own tick too slowly to tell
    // a write just behind the snapshot from one before it.
    std::array<timespec, 2> times = {};
    times[0].tv_nsec = UTIME_OMIT;
    ::clock_gettime(CLOCK_REALTIME, &times[1]);
    ::futimens(file, times.data());
  }
}

Result<> check_frozen(const SavedDisks& saved, const Config& config,
                      std::span<const std::string> accepted) {
  for (const SavedDisks::Disk& disk : saved.disks) {
    const auto table = std::ranges::find(config.disks, disk.id, &DiskConfig::id);
    const bool other = !disk.overlay && std::ranges::find(accepted, disk.id) != accepted.end();
    if (disk.frozen && !other && table != config.disks.end() && table->overlay.empty()) {
      return fail(ErrorCode::kConfig,
                  fmt::format("disk \"{0}\": was frozen for this snapshot, and is only read since; "
                              "wants a file of this VM's own for what it writes (--disk "
                              "id={0},overlay=PATH, made where there is none)",
                              disk.id));
    }
  }
  return {};
}

std::vector<WrittenDisk> written_disks(std::span<const OpenDisk> disks) {
  std::vector<WrittenDisk> written;
  for (const OpenDisk& disk : disks) {
    if (!disk.settings.readonly) {
      // What is below an overlay that was made now has to be as it was, or else what is written.
      written.push_back({.id = disk.settings.id,
                         .file = disk.fresh ? disk.disk->base_file() : disk.disk->written_file()});
    }
  }
  return written;
}

Result<> check_disks(const SavedDisks& saved, std::span<const WrittenDisk> disks,
                     std::span<const std::string> accepted) {
  for (const auto& [id, file] : disks) {
    if (std::ranges::find(accepted, id) != accepted.end()) {
      continue;
    }
    const auto before = std::ranges::find(saved.disks, id, &SavedDisks::Disk::id);
    if (before == saved.disks.end()) {
      return std::unexpected(
          section_error(SavedDisks::kTag, 0, fmt::format("does not know disk {}", id)));
    }
    TRY_ASSIGN(const SavedDisks::Disk now, save_disk(id, file));
    if (const std::string_view what = difference(*before, now); !what.empty()) {
      return fail(
          ErrorCode::kBadInput,
          fmt::format("disk \"{0}\" {1} since this snapshot was taken, and the guest would corrupt "
                      "what is on it now; put a copy from that moment in its place (--disk "
                      "id={0},{2}=COPY), go back to it as it was then and restore again, or take "
                      "it as it is (--stale-disk {0})",
                      id, what, before->overlay && !before->frozen ? "overlay" : "path"));
    }
    if (now.block_device) {
      log_warn("block",
               "disk {}: a block device does not tell whether it was written to since the "
               "snapshot was taken",
               id);
    }
  }
  return {};
}

}  // namespace vireo
