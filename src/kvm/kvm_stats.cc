// SPDX-License-Identifier: Apache-2.0
#include "src/kvm/kvm_stats.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "src/kvm/uapi.h"

namespace vireo {

Result<> KvmStats::open(int fd) {
  TRY_ASSIGN(const int stats_fd, try_ioctl(fd, KVM_GET_STATS_FD, 0UL, "KVM_GET_STATS_FD"));
  fd_ = UniqueFd(stats_fd);
  kvm_stats_header header = {};
  TRY(read_full_at(fd_.get(), std::as_writable_bytes(std::span(&header, 1)), 0));
  // Each descriptor ends in a name of header.name_size bytes.
  const std::size_t size = offsetof(kvm_stats_desc, name) + header.name_size;
  data_ = header.data_offset;
  std::vector<std::byte> bytes(size * header.num_desc);
  TRY(read_full_at(fd_.get(), bytes, header.desc_offset));
  for (std::uint32_t i = 0; i < header.num_desc; ++i) {
    const std::span<const std::byte> raw = std::span(bytes).subspan(i * size, size);
    kvm_stats_desc descriptor = {};
    std::memcpy(&descriptor, raw.data(), offsetof(kvm_stats_desc, name));
    if (descriptor.size != 1) {
      continue;  // a histogram
    }
    const auto* const name =
        reinterpret_cast<const char*>(raw.data() + offsetof(kvm_stats_desc, name));
    descriptors_.push_back({.name = std::string(name, ::strnlen(name, header.name_size)),
                            .offset = descriptor.offset});
    values_ = std::max(values_, descriptor.offset / sizeof(std::uint64_t) + 1);
  }
  return {};
}

Result<std::vector<KvmCounter>> KvmStats::read() const {
  std::vector<std::uint64_t> values(values_);
  TRY(read_full_at(fd_.get(), std::as_writable_bytes(std::span(values)), data_));
  std::vector<KvmCounter> counters;
  for (const Descriptor& descriptor : descriptors_) {
    const std::uint64_t value = values[descriptor.offset / sizeof(std::uint64_t)];
    if (value != 0) {
      counters.push_back({.name = descriptor.name, .value = value});
    }
  }
  return counters;
}

}  // namespace vireo
