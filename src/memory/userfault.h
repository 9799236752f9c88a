// SPDX-License-Identifier: Apache-2.0
// userfaultfd(2), in the way in which KVM's faults and io_uring's come to it, too.
#pragma once

#include <string>

#include "src/base/error.h"
#include "src/base/fd.h"

namespace vireo {

/// By the system call, or by the device, whose permissions an administrator can give to others;
/// `way` says which. Non-blocking. Errors: kPermission where this user may not, kSystem.
Result<UniqueFd> open_userfaultfd(std::string& way);

}  // namespace vireo
