// SPDX-License-Identifier: Apache-2.0
// Disks as a configuration has them (src/config.h).
#pragma once

#include <cstdint>
#include <string>

#include "src/io/rate_limiter.h"

namespace vireo {

enum class DiskCache : std::uint8_t { kWriteback, kUnsafe };
/// What is at a disk's path where there is an overlay over it. kUnset: as the overlay says, and an
/// image where that is made now.
enum class BaseFormat : std::uint8_t { kUnset, kRaw, kOverlay };

struct DiskConfig {
  std::string id;  ///< also the virtio serial
  std::string path;
  bool root = false;
  std::string partuuid;  ///< of the root file system's partition on it
  bool readonly = false;
  bool direct = false;
  DiskCache cache = DiskCache::kWriteback;
  unsigned queues = 1;  ///< 0: one for each vCPU
  std::string overlay;
  BaseFormat base_format = BaseFormat::kUnset;
  RateLimitConfig rate_limit;
  bool operator==(const DiskConfig&) const = default;
};

/// A disk that is made on first use.
struct VolumeConfig {
  std::string id;
  std::string path;
  std::uint64_t size_bytes = 0;
  bool operator==(const VolumeConfig&) const = default;
};

/// A NoCloud seed: an ISO, or the texts that one is made of.
struct CloudInitConfig {
  std::string seed;
  std::string user_data;
  std::string meta_data;
  std::string network_config;
  bool operator==(const CloudInitConfig&) const = default;
};

}  // namespace vireo
