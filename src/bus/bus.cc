// SPDX-License-Identifier: Apache-2.0
#include "src/bus/bus.h"

#include <algorithm>
#include <cstring>

namespace vireo {

void Bus::add(std::uint64_t base, std::uint64_t size, BusDevice& device, std::string_view name) {
  CHECK(!frozen_);
  CHECK(size > 0 && base + (size - 1) >= base);
  const auto next = std::ranges::upper_bound(entries_, base, {}, &Entry::base);
  CHECK(next == entries_.end() || next->base - base >= size);
  CHECK(next == entries_.begin() || base - std::prev(next)->base >= std::prev(next)->size);
  entries_.insert(next, Entry{.base = base, .size = size, .device = &device, .name = name});
}

const Bus::Entry* Bus::find(std::uint64_t address, std::uint64_t size) const {
  const auto next = std::ranges::upper_bound(entries_, address, {}, &Entry::base);
  if (next == entries_.begin()) {
    return nullptr;
  }
  const Entry& entry = *std::prev(next);
  const std::uint64_t offset = address - entry.base;
  // Written so that nothing overflows for an address near 2^64.
  if (offset >= entry.size || size > entry.size - offset) {
    return nullptr;
  }
  return &entry;
}

bool Bus::read(std::uint64_t address, std::span<std::byte> data) const {
  const Entry* entry = find(address, data.size());
  if (entry == nullptr) {
    std::ranges::fill(data, std::byte{0xff});
    return false;
  }
  entry->device->read(address - entry->base, data);
  return true;
}

bool Bus::write(std::uint64_t address, std::span<const std::byte> data) const {
  const Entry* entry = find(address, data.size());
  if (entry == nullptr) {
    return false;
  }
  entry->device->write(address - entry->base, data);
  return true;
}

}  // namespace vireo
