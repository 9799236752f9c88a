// SPDX-License-Identifier: Apache-2.0
#include "src/base/error.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace vireo {

namespace {

ErrorCode code_of_errno(int errnum) {
  switch (errnum) {
    case EACCES:
    case EPERM:
      return ErrorCode::kPermission;
    case ENOENT:
    case ENOTDIR:
    case ENAMETOOLONG:
    case ELOOP:
      return ErrorCode::kMissingInput;
    default:
      return ErrorCode::kSystem;
  }
}

}  // namespace

Error Error::from_errno(int errnum, std::string_view what) {
  // strerrordesc_np needs no locale and no buffer, and is safe in every thread.
  const char* description = strerrordesc_np(errnum);
  std::string message(what);
  message += ": ";
  message += description != nullptr ? description : "unknown error";
  Error error(code_of_errno(errnum), std::move(message));
  error.errnum_ = errnum;
  return error;
}

Error Error::context(std::string_view what) && {
  message_.insert(0, ": ");
  message_.insert(0, what);
  return std::move(*this);
}

Error Error::with_code(ErrorCode code) && {
  code_ = code;
  return std::move(*this);
}

void check_failed(const char* file, int line, const char* condition) {
  // stdio only: the log may be what failed.
  std::fprintf(stderr, "vireo: %s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace vireo
