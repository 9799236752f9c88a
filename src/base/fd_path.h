// SPDX-License-Identifier: Apache-2.0
// Paths as an operator writes them: a path of the file system, or an inherited descriptor as fd:N
// or fd:NAME (a name in LISTEN_FDNAMES, sd_listen_fds(3)).
//
//   TRY_ASSIGN(UniqueFd file, open_path(config.file, O_WRONLY | O_CREAT | O_APPEND, 0644));
//
// Main thread, before the VM runs. What kind of file it has to be is the caller's to check: the
// access mode is checked here.
#pragma once

#include <string>
#include <string_view>

#include <sys/types.h>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

/// Whether `path` names an inherited descriptor: it begins with "fd:".
bool is_inherited(std::string_view path);

/// Why `path` can name no inherited descriptor whatever is inherited ("fd:", "fd:a:b"); empty where
/// it can, or is no such path. Opens nothing.
std::string_view wrong_fd_path(std::string_view path);

/// A copy, close-on-exec, of the inherited descriptor behind `path`. `access`: O_RDONLY, O_WRONLY
/// or O_RDWR, which it must allow. Errors begin with the path: kMissingInput where nothing was
/// inherited so (a descriptor that this process opened itself does not count); where the mode is
/// wrong kBadInput for inputs, kConfig for what shall be written.
Result<UniqueFd> open_inherited(const std::string& path, int access);

/// open_file(), or open_inherited() where `path` says so. Of `flags` an inherited descriptor is
/// asked for its access mode only: truncating and appending were for its opener to choose.
Result<UniqueFd> open_path(const std::string& path, int flags, mode_t mode = 0);

}  // namespace vireo
