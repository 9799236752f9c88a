// SPDX-License-Identifier: Apache-2.0
#include "src/seal.h"

#include <cerrno>
#include <filesystem>

#include <fcntl.h>
#include <linux/fsverity.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <fmt/core.h>

#include "src/base/fd.h"

namespace vireo {

namespace {

constexpr std::uint32_t kBlock = 4096;

Result<> enable(int file, const std::string& path) {
  fsverity_enable_arg argument = {};
  argument.version = 1;
  argument.hash_algorithm = FS_VERITY_HASH_ALG_SHA256;
  argument.block_size = kBlock;
  if (::ioctl(file, FS_IOC_ENABLE_VERITY, &argument) == 0 || errno == EEXIST) {
    return {};
  }
  if (errno == EOPNOTSUPP || errno == ENOTTY) {
    return fail(
        ErrorCode::kSystem,
        fmt::format("{}: seal: its file system has no fs-verity; wants ext4 with the feature "
                    "(tune2fs -O verity), btrfs or f2fs",
                    path));
  }
  return fail_errno(errno, path + ": seal");
}

}  // namespace

Result<> seal_file(const std::string& path) {
  TRY_ASSIGN(const UniqueFd file, open_file(path, O_RDONLY));
  return enable(file.get(), path);
}

Result<> check_sealable(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  UniqueFd written(::open(parent.empty() ? "." : parent.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC,
                          S_IRUSR | S_IWUSR));
  if (!written) {
    return fail_errno(errno, path + ": seal: a file to try it with");
  }
  TRY_ASSIGN(const UniqueFd file,
             open_file(fmt::format("/proc/self/fd/{}", written.get()), O_RDONLY));
  written.reset();
  return enable(file.get(), path);
}

bool is_sealed(int file) {
  struct statx status = {};
  return ::statx(file, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &status) == 0 &&
         (status.stx_attributes & STATX_ATTR_VERITY) != 0;
}

}  // namespace vireo
