// SPDX-License-Identifier: Apache-2.0
#include "devices/block/overlay_file.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <fmt/core.h>

#include "src/base/endian.h"
#include "src/base/log.h"
#include "src/base/unpublished_file.h"

namespace vireo {

namespace {

constexpr std::array<char, 8> kMagic = {'V', 'I', 'R', 'E', 'O', 'O', 'V', 'L'};
constexpr std::uint32_t kVersion = 2;
constexpr std::uint64_t kMapOffset = 2 * sizeof(OverlayHeaderPage);
/// A disk may grow to so many times its size without the map getting in the way.
constexpr std::uint64_t kGrowth = 4;
/// Larger disks are not to be had: their offsets in the file would be beyond any file system's.
constexpr std::uint64_t kSizeMax = std::uint64_t{1} << 50;

struct WireHeader {
  std::array<char, 8> magic;
  le64 checksum;  ///< XXH3, 64 bits, of the page from here on
  le32 version;
  le32 cloned;
  le64 sequence;
  le64 size;
  le64 map_offset;
  le64 map_size;
  le64 data_offset;
  le64 base_size;
  le64 base_mtime_ns;
  le32 base_path_size;
  std::array<char, 3072> base_path;
  le32 base_is_overlay;
};
static_assert(sizeof(WireHeader) <= sizeof(OverlayHeaderPage));

std::uint64_t checksum_of(const OverlayHeaderPage& page) {
  const auto bytes = std::span(page).subspan(offsetof(WireHeader, version));
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::uint64_t round_up(std::uint64_t number, std::uint64_t unit) {
  return (number + unit - 1) / unit * unit;
}

std::unexpected<Error> not_an_overlay(const std::string& why) {
  return fail(ErrorCode::kBadInput, "no overlay of vireo's: " + why);
}

OverlayHeader header_for(const OverlayBase& base) {
  OverlayHeader header = {.sequence = 1,
                          .size = base.size,
                          .map_offset = kMapOffset,
                          .base_size = base.size,
                          .base_mtime_ns = base.mtime_ns,
                          .base_is_overlay = base.is_overlay,
                          .base_path = base.path.substr(0, sizeof(WireHeader::base_path))};
  header.map_size = round_up(overlay_blocks(base.size * kGrowth) / 8 + 1, BlockMap::kPageSize);
  header.data_offset = header.map_offset + header.map_size;
  return header;
}

Result<> write_at(int fd, std::span<const std::byte> bytes, std::uint64_t offset) {
  const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
  if (written == static_cast<ssize_t>(bytes.size())) {
    return {};
  }
  return fail_errno(written < 0 ? errno : ENOSPC, "writing its header");
}

/// All of `base` as the data, without a copy. False where the file systems cannot.
bool clone_base(int fd, const OverlayHeader& header, const DiskFile& base) {
  const file_clone_range range = {.src_fd = base.fd.get(),
                                  .src_offset = 0,
                                  .src_length = 0,  // to its end
                                  .dest_offset = header.data_offset};
  return !base.block_device && ::ioctl(fd, FICLONERANGE, &range) == 0;
}

Result<> fill_new_overlay(int fd, const OverlayHeader& header) {
  if (::ftruncate(fd, static_cast<off_t>(header.data_offset + header.size)) < 0) {
    return fail_errno(errno, "making it");
  }
  TRY(write_at(fd, encode_overlay_header(header), 0));
  if (::fsync(fd) < 0) {
    return fail_errno(errno, "fsync");
  }
  return {};
}

Result<OverlayHeader> read_header(int fd) {
  std::optional<OverlayHeader> newest;
  std::optional<Error> reason;
  for (std::uint64_t slot = 0; slot < 2; ++slot) {
    OverlayHeaderPage page = {};
    TRY(read_full_at(fd, page, slot * sizeof(page)));
    auto header = decode_overlay_header(page);
    if (header && (!newest || header->sequence > newest->sequence)) {
      newest = std::move(*header);
    } else if (!header && slot == 0) {
      reason = std::move(header).error();
    }
  }
  if (!newest) {
    return std::unexpected(std::move(*reason));
  }
  return std::move(*newest);
}

}  // namespace

OverlayHeaderPage encode_overlay_header(const OverlayHeader& header) {
  WireHeader wire = {.magic = kMagic,
                     .checksum = 0,
                     // What has no need of the newer format can be read by older programs.
                     .version = header.base_is_overlay ? kVersion : 1,
                     .cloned = header.cloned ? 1U : 0U,
                     .sequence = header.sequence,
                     .size = header.size,
                     .map_offset = header.map_offset,
                     .map_size = header.map_size,
                     .data_offset = header.data_offset,
                     .base_size = header.base_size,
                     .base_mtime_ns = static_cast<std::uint64_t>(header.base_mtime_ns),
                     .base_path_size = static_cast<std::uint32_t>(header.base_path.size()),
                     .base_path = {},
                     .base_is_overlay = header.base_is_overlay ? 1U : 0U};
  CHECK(header.base_path.size() <= wire.base_path.size());
  std::ranges::copy(header.base_path, wire.base_path.begin());
  OverlayHeaderPage page = {};
  std::memcpy(page.data(), &wire, sizeof(wire));
  wire.checksum = checksum_of(page);
  std::memcpy(page.data(), &wire, sizeof(wire));
  return page;
}

Result<OverlayHeader> decode_overlay_header(const OverlayHeaderPage& page) {
  WireHeader wire;
  std::memcpy(&wire, page.data(), sizeof(wire));
  if (wire.magic != kMagic) {
    return not_an_overlay("it does not begin as one");
  }
  if (wire.version > kVersion) {
    return not_an_overlay(fmt::format("its format, {}, is newer than this program's, {}",
                                      std::uint32_t{wire.version}, kVersion));
  }
  if (wire.checksum != checksum_of(page)) {
    return not_an_overlay("its header is damaged");
  }
  OverlayHeader header = {
      .sequence = wire.sequence,
      .size = wire.size,
      .map_offset = wire.map_offset,
      .map_size = wire.map_size,
      .data_offset = wire.data_offset,
      .cloned = wire.cloned != 0,
      .base_size = wire.base_size,
      .base_mtime_ns = static_cast<std::int64_t>(std::uint64_t{wire.base_mtime_ns}),
      .base_is_overlay = wire.base_is_overlay != 0,
      .base_path = {}};
  const bool sound = header.size > 0 && header.size <= kSizeMax && header.base_size <= kSizeMax &&
                     header.size % 512 == 0 && header.map_offset == kMapOffset &&
                     header.map_size % BlockMap::kPageSize == 0 && header.map_size <= kSizeMax &&
                     header.map_size * 8 >= overlay_blocks(header.size) &&
                     header.data_offset >= header.map_offset + header.map_size &&
                     header.data_offset <= kSizeMax && header.data_offset % kOverlayBlock == 0 &&
                     wire.base_path_size <= wire.base_path.size();
  if (!sound) {
    return not_an_overlay("its header contradicts itself");
  }
  header.base_path.assign(wire.base_path.data(), wire.base_path_size);
  return header;
}

std::string absolute_path(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> resolved(::realpath(path.c_str(), nullptr),
                                                             &std::free);
  return resolved ? resolved.get() : path;
}

Result<OverlayBase> overlay_base_of(const std::string& path, const DiskFile& base) {
  struct stat status = {};
  if (::fstat(base.fd.get(), &status) < 0) {
    return fail_errno(errno, path);
  }
  return OverlayBase{.path = path,
                     .size = base.size,
                     .mtime_ns = status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec};
}

Result<bool> make_overlay(const std::string& path, const OverlayBase& base,
                          const DiskFile& base_file) {
  TRY_ASSIGN(UnpublishedFile file, UnpublishedFile::create(path, 0644));
  OverlayHeader header = header_for(base);
  header.cloned = !base.is_overlay && clone_base(file.fd(), header, base_file);
  if (Result<> filled = fill_new_overlay(file.fd(), header); !filled) {
    return std::unexpected(std::move(filled).error().context(path));
  }
  return file.publish();
}

Result<OverlayFile> begin_overlay(UniqueFd fd, const OverlayBase& base) {
  OverlayHeader header = header_for(base);
  header.sequence = 0;
  if (::ftruncate(fd.get(), static_cast<off_t>(header.data_offset + header.size)) < 0) {
    return fail_errno(errno, "making it");
  }
  TRY_ASSIGN(DiskFile file, adopt_disk_file(std::move(fd), {.writable = true}));
  TRY_ASSIGN(BlockMap map, BlockMap::create(overlay_blocks(header.size), header.map_size * 8));
  return OverlayFile{.file = std::move(file), .header = std::move(header), .map = std::move(map)};
}

Result<OverlayFile> open_overlay(const std::string& path, bool writable) {
  TRY_ASSIGN(DiskFile file, open_disk_file(path, {.writable = writable}));
  auto header = read_header(file.fd.get());
  if (!header) {
    return std::unexpected(std::move(header).error().context(path));
  }
  if (file.size < header->data_offset + header->size) {
    return fail(ErrorCode::kBadInput, path + ": it was cut short: its data ends before the disk");
  }
  TRY_ASSIGN(BlockMap map, BlockMap::create(overlay_blocks(header->size), header->map_size * 8));
  if (Result<> loaded = map.load(file.fd.get(), header->map_offset); !loaded) {
    return std::unexpected(std::move(loaded).error().context(path));
  }
  return OverlayFile{.file = std::move(file), .header = std::move(*header), .map = std::move(map)};
}

Result<> check_overlay_base(const OverlayHeader& header, const OverlayBase& base) {
  // A commit makes a base as large as the disk before the header tells of it.
  if (base.size != header.base_size && base.size != header.size) {
    return fail(
        ErrorCode::kBadInput,
        fmt::format("its base had {} bytes and not {}, as {} has now: give it the base that "
                    "it was made over ({})",
                    header.base_size, base.size, base.path, header.base_path));
  }
  if (base.mtime_ns != header.base_mtime_ns) {
    log_warn("block",
             "{} was touched since overlays were made over it: should its contents have changed, "
             "they are of no use any more",
             base.path);
  }
  return {};
}

Result<> write_overlay_header(OverlayFile& overlay) {
  ++overlay.header.sequence;
  return write_at(overlay.file.fd.get(), encode_overlay_header(overlay.header),
                  overlay_header_offset(overlay.header));
}

Result<> update_overlay_header(OverlayFile& overlay) {
  TRY(write_overlay_header(overlay));
  if (::fdatasync(overlay.file.fd.get()) < 0) {
    return fail_errno(errno, "fdatasync");
  }
  return {};
}

}  // namespace vireo
