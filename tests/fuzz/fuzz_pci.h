// SPDX-License-Identifier: Apache-2.0
// What a PCI bus of a target hangs on, with what it may be told held against what it promises.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "devices/pci/msix.h"
#include "devices/pci/root.h"
#include "src/base/error.h"

namespace vireo {

struct FuzzMsiRouter final : MsiRouter {
  struct Vector final : Interrupt {
    void raise() override {}
  };
  Result<std::unique_ptr<Interrupt>> create_vector(unsigned vector) override {
    CHECK(vector == vectors++);
    return std::make_unique<Vector>();
  }
  void route(unsigned vector, std::uint64_t address, std::uint32_t /*data*/,
             bool /*masked*/) override {
    CHECK(vector < vectors && address % 4 == 0);
  }
  unsigned vectors = 0;
};

/// One at an address, and within the window.
struct FuzzPciHost final : PciHost {
  FuzzPciHost(std::uint64_t window_start, std::uint64_t window_size)
      : start(window_start), size(window_size) {}

  Result<> attach_doorbell(GuestAddress address, unsigned width, int fd) override {
    CHECK(address.value() >= start && address.value() + width <= start + size);
    CHECK(attached.emplace(address, fd).second);
    return {};
  }
  void detach_doorbell(GuestAddress address, unsigned /*width*/, int fd) override {
    const auto found = attached.find(address);
    CHECK(found != attached.end() && found->second == fd);
    attached.erase(found);
  }
  Result<> map(GuestAddress /*address*/, std::span<std::byte> /*memory*/) override {
    CHECK(false);  // no device here has any
    return {};
  }
  void unmap(GuestAddress /*address*/, std::span<std::byte> /*memory*/) override { CHECK(false); }
  const std::uint64_t start;
  const std::uint64_t size;
  std::map<GuestAddress, int> attached;
};

}  // namespace vireo
