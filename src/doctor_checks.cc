// SPDX-License-Identifier: Apache-2.0
#include "src/doctor_checks.h"

#include <array>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "src/base/fd.h"

namespace vireo {

Finding found(const Check& check, std::string value, std::optional<std::uint64_t> number) {
  return {.id = check.id,
          .title = check.title,
          .state = FindingState::kOk,
          .value = std::move(value),
          .number = number};
}

Finding lacking(const Check& check, std::string value) {
  return {.id = check.id,
          .title = check.title,
          .state = FindingState::kLacking,
          .value = std::move(value),
          .cost = check.cost,
          .remedy = check.remedy};
}

Finding blocking(const Check& check, std::string value, ErrorCode code) {
  Finding finding = lacking(check, std::move(value));
  finding.blocker = code;
  return finding;
}

Finding unknown(const Check& check, std::string value) {
  return {.id = check.id,
          .title = check.title,
          .state = FindingState::kUnknown,
          .value = std::move(value)};
}

std::string failure(std::string_view call, int errnum) {
  return Error::from_errno(errnum, call).message();
}

Result<std::string> read_text(const std::string& path) {
  TRY_ASSIGN(const UniqueFd file, open_file(path, O_RDONLY));
  std::array<char, 4096> buffer = {};
  const ssize_t length = ::read(file.get(), buffer.data(), buffer.size());
  if (length < 0) {
    return fail_errno(errno, path);
  }
  std::string text(buffer.data(), static_cast<std::size_t>(length));
  if (text.ends_with('\n')) {
    text.pop_back();
  }
  return text;
}

}  // namespace vireo
