// SPDX-License-Identifier: Apache-2.0
// An image file or a block device, as it was opened for a guest: locked, and with what I/O on it
// has to keep to.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

/// Bytes; powers of two.
struct BlockLimits {
  std::uint32_t block_size = 512;         ///< offsets and lengths are multiples of it
  std::uint32_t memory_alignment = 1;     ///< of buffers, for direct I/O
  std::uint32_t physical_block_size = 0;  ///< a write of less is a read, too; 0: not known
  std::uint32_t optimal_size = 0;         ///< 0: not known
};

struct DiskFile {
  UniqueFd fd;
  std::uint64_t size = 0;  ///< bytes
  BlockLimits limits;
  bool block_device = false;
  bool direct = false;  ///< reads and writes pass the page cache by
};

struct DiskFileOptions {
  bool writable = false;
  bool direct = false;  ///< O_DIRECT
};

/// Opens `path` (or fd:N), and locks it: for others to read too, or for this process alone where it
/// is writable. Errors begin with the path: kSystem with the holder's process id where it is locked
/// already; kBadInput where it is no image; kConfig where it cannot be what `options` want.
Result<DiskFile> open_disk_file(const std::string& path, const DiskFileOptions& options);

/// Opens a path with flags of open(2). The error begins with the path.
using FileOpener = std::function<Result<UniqueFd>(const std::string& path, int flags)>;

/// The two halves of that, for two processes: the file, neither locked nor looked at, …
Result<UniqueFd> open_image_file(const std::string& path, const DiskFileOptions& options);
/// (which somebody else may open)
Result<UniqueFd> open_image_file(const std::string& path, const DiskFileOptions& options,
                                 const FileOpener& open);
/// … and what it is, locked. Errors name no path.
Result<DiskFile> adopt_disk_file(UniqueFd fd, const DiskFileOptions& options);

/// From now on it is only read: others may read it too, and its reads pass by no page cache.
Result<> make_shared_file(DiskFile& file);

/// What the size of an open one is now: it may have been grown.
Result<std::uint64_t> disk_file_size(const DiskFile& file);

}  // namespace vireo
