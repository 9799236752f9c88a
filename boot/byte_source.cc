// SPDX-License-Identifier: Apache-2.0
#include "boot/byte_source.h"

#include <cstring>

#include "src/base/fd.h"

namespace vireo {

Result<> ByteSource::read(std::uint64_t offset, std::span<std::byte> to) const {
  if (!contains(offset, to.size())) {
    return fail(ErrorCode::kBadInput, "the file ends too early (truncated?)");
  }
  if (fd_ >= 0) {
    return read_full_at(fd_, to, offset);
  }
  if (!to.empty()) {
    std::memcpy(to.data(), bytes_.data() + offset, to.size());
  }
  return {};
}

}  // namespace vireo
