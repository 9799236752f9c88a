// SPDX-License-Identifier: Apache-2.0
// The kernel cache: a directory of immutable kernels, unpacked and ready to be copied.
//
//   k-<hash of the input's content>   an entry (cache_entry.h), mode 0400
//   i-<hash of an input's identity>   symbolic link to the entry: found without reading the input
//   t-<random>                        being written; locked by its writer as long as it lives
//
// Safe against two starts at once and against a crash: an entry appears by rename when it is on
// disk. Only a directory and files that belong to us and that nobody else can write are used. A
// cache that cannot be used is never a reason not to boot.
//
// Owned by GuestBoot; one thread. Entries in use stay open, so they may be evicted meanwhile.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "boot/cache_entry.h"
#include "boot/input_file.h"
#include "boot/kernel_image.h"
#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

enum class CacheMode : std::uint8_t { kAuto, kOff, kDirectory };

/// All entries together; the least recently used go first.
inline constexpr std::uint64_t kCacheSizeMax = std::uint64_t{1} << 30;

struct CachedKernel {
  UniqueFd fd;
  std::uint64_t size = 0;
  KernelImage kernel;
};

class KernelCache {
 public:
  /// A null pointer where the cache is off, or `auto` and not to be had. Errors: an explicit
  /// `directory` (a path, or fd:N) that cannot be made or is not safe.
  static Result<std::unique_ptr<KernelCache>> open(CacheMode mode, const std::string& directory,
                                                   std::uint64_t size_max = kCacheSizeMax);

  /// By what fstat says of the input.
  std::optional<CachedKernel> find(const FileIdentity& identity);
  std::optional<CachedKernel> find(const ContentHash& content);

  /// Writes an entry, evicts others for it, and opens it. Nothing, and a line in the log, where
  /// that fails.
  std::optional<CachedKernel> store(const KernelImage& kernel, const ByteSource& source,
                                    const ContentHash& content);

  /// Lets find(identity) find the entry of `content` from now on. Not done for an input that was
  /// changed a moment ago: its times could stay the same over another change.
  void remember(const FileIdentity& identity, const ContentHash& content);

 private:
  KernelCache(UniqueFd directory, std::uint64_t size_max)
      : directory_(std::move(directory)), size_max_(size_max) {}

  std::optional<CachedKernel> open_entry(const std::string& name, const ContentHash& content);
  Result<> write_entry(const std::string& temporary, const KernelImage& kernel,
                       const ByteSource& source, const ContentHash& content);
  Result<> make_room(std::uint64_t size);

  UniqueFd directory_;
  std::uint64_t size_max_;
};

}  // namespace vireo
