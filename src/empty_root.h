// SPDX-License-Identifier: Apache-2.0
// An empty root directory of the process's own: mount_namespaces(7), and user_namespaces(7) for
// who may not have the first without the second.
#pragma once

#include "src/base/error.h"

namespace vireo {

/// Moves the calling process, while it has one thread, into a mount namespace of its own, and into
/// a user namespace with the same user and group where it takes that. 0, or the errno of the
/// refusal with which nothing has changed. Errors: the namespaces are there and cannot be used.
Result<int> enter_mount_namespace();

/// enter_mount_namespace(), and in it a root directory that is empty and cannot be written to.
/// False where the process may not have that.
Result<bool> enter_empty_root();

}  // namespace vireo
