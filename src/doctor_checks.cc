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

}  // namespace vireo
