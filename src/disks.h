// SPDX-License-Identifier: Apache-2.0
// The disks of a machine: what the configuration names, opened and locked.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "devices/block/block_device.h"
#include "src/base/error.h"
#include "src/config.h"

namespace vireo {

/// The name of a file that was made now: removed again, unless it is kept.
class MadeFile {
 public:
  MadeFile() = default;
  explicit MadeFile(std::string path) : path_(std::move(path)) {}
  MadeFile(MadeFile&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  MadeFile& operator=(MadeFile&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~MadeFile();
  void keep() { path_.clear(); }

 private:
  std::string path_;
};

struct OpenDisk {
  BlockDevice::Settings settings;
  std::unique_ptr<Disk> disk;
  bool fresh = false;  ///< its overlay was made now, …
  MadeFile made;       ///< … which is this one
};

/// In the order in which the guest has them: disks, volumes, the cloud-init seed. Main thread,
/// before the sandbox. Errors begin with what the disk is called.
Result<std::vector<OpenDisk>> open_disks(const Config& config);

}  // namespace vireo
